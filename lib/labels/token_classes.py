"""The table of token classes: what a token's text has to look like to carry a label. One line makes a label.

To add one, write a line into `TOKEN_CLASSES` and run the report again: labels are scored from statistics that exist,
no model is rerun. A token's text has its leading space; a token that is only part of a character shows its bytes as
lone surrogates (U+DC80 to U+DCFF), which match no letter.
"""

import re
from dataclasses import dataclass
from string import ascii_lowercase

from lib.base.errors import InputError


@dataclass(frozen=True)
class TokenClass:
    """One label: 1 for the tokens whose whole text the regular expression matches."""

    label: str
    pattern: str
    family: str = "token_class"

    def members(self, texts: list[str]) -> list[bool]:
        """For each text whether it carries the label; InputError if the pattern is no regular expression."""
        try:
            pattern = re.compile(self.pattern, re.DOTALL)
        except re.error as error:
            raise InputError(
                f"the token class '{self.label}' has the pattern {self.pattern!r}, which is not a regular expression ({error})."
            ) from None
        return [pattern.fullmatch(text) is not None for text in texts]


def looks(label: str, pattern: str, family: str = "token_class") -> TokenClass:
    """The token's whole text matches the pattern; begin it with ` ?` to allow a leading space."""
    return TokenClass(label, pattern, family)


def words(label: str, listed: str) -> TokenClass:
    """The token is one of the words, in any case, with or without a leading space."""
    return TokenClass(label, f" ?(?i:{'|'.join(map(re.escape, listed.split()))})")


def names(label: str, listed: str) -> TokenClass:
    """The token is one of the names as written here (an underscore stands for a space) or in capitals."""
    written = [name.replace("_", " ") for name in listed.split()]
    return TokenClass(label, f" ?(?:{'|'.join(re.escape(form) for name in written for form in (name, name.upper()))})")


def signs(label: str, listed: str) -> TokenClass:
    """The token is nothing but these characters, with or without a leading space."""
    return TokenClass(label, f" ?[{re.escape(listed)}]+")


def suffixes(listed: str) -> list[TokenClass]:
    """One label per ending: the token is letters only and ends so."""
    return [TokenClass(f"ends with -{end}", rf"(?i: ?[^\W\d_]*{end})") for end in listed.split()]


def prefixes(listed: str) -> list[TokenClass]:
    """One label per beginning: the token is letters only and begins so."""
    return [TokenClass(f"begins with {start}-", rf"(?i: ?{start}[^\W\d_]*)") for start in listed.split()]


def first_letters(listed: str) -> list[TokenClass]:
    """One label per letter: the token begins with it, in either case, with or without a leading space."""
    return [TokenClass(f"first letter {letter}", f"(?i: ?{letter}.*)", "alphabet") for letter in listed]


TOKEN_CLASSES: tuple[TokenClass, ...] = (
    # space and layout
    looks("starts with a space", r" .*"),
    looks("starts with a space and a letter", r" [^\W\d_].*"),
    looks("whitespace only", r"\s+"),
    looks("run of spaces", r" {2,}"),
    looks("tab", r".*\t.*"),
    looks("line end", r".*[\r\n].*"),
    looks("indentation", r"[\r\n]*[ \t]{2,}|\t+"),
    # case and length
    looks("letters only", r" ?[^\W\d_]+"),
    looks("all capitals", r" ?[A-ZÀ-ÖØ-Þ]{2,}"),
    looks("capitalised", r" ?[A-ZÀ-ÖØ-Þ][a-zß-öø-ÿ]+"),
    looks("starts with a capital", r" ?[A-ZÀ-ÖØ-Þ].*"),
    looks("lower case", r" ?[a-zß-öø-ÿ]+"),
    looks("camel case", r" ?[a-zA-Z]*[a-z][A-Z][a-zA-Z]*"),
    looks("piece of a word in lower case", r"[a-zß-öø-ÿ]+"),
    looks("single letter", r" ?[^\W\d_]"),
    looks("single capital", r" ?[A-Z]"),
    looks("two letters", r" ?[^\W\d_]{2}"),
    looks("three letters", r" ?[^\W\d_]{3}"),
    looks("long word", r" [^\W\d_]{8,}"),
    looks("no vowel", r" ?(?i:[b-df-hj-np-tv-z]{2,})"),
    looks("doubled letter", r" ?[^\W\d_]*([^\W\d_])\1[^\W\d_]*"),
    looks("ends with a vowel", r" ?[^\W\d_]*(?i:[aeiou])"),
    # scripts and bytes
    looks("not ASCII", r".*[^\x00-\x7f].*"),
    looks("accented letter", r".*[À-ÖØ-öø-ɏ].*"),
    looks("umlaut or sharp s", r".*[äöüÄÖÜß].*"),
    looks("Greek letter", r".*[Ͱ-Ͽ].*"),
    looks("Cyrillic letter", r".*[Ѐ-ӿ].*"),
    looks("Hebrew or Arabic letter", r".*[\u0590-\u06ff].*"),
    looks("Chinese, Japanese or Korean", r".*[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af].*"),
    looks("part of a character", r".*[\udc80-\udcff].*"),
    # numbers
    looks("digits", r" ?\d+"),
    looks("one digit", r" ?\d"),
    looks("two digits", r" ?\d\d"),
    looks("three digits", r" ?\d{3}"),
    looks("four digits", r" ?\d{4}"),
    looks("contains a digit", r".*\d.*"),
    looks("digits without a space before", r"\d+"),
    looks("year", r" ?(?:1[5-9]|20)\d\d"),
    looks("century start of a year", r" ?(?:1[5-9]|20)"),
    looks("even number", r" ?\d*[02468]"),
    looks("number with zeros at its end", r" ?\d*00"),
    looks("Roman numeral", r" ?(?=[IVXLC]{2})(?:X[CL]|L?X{0,3})(?:IX|IV|V?I{0,3})"),
    looks("hexadecimal", r" ?(?:0x[0-9a-fA-F]*|x[0-9a-fA-F]{2,})"),
    words(
        "number word",
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion trillion dozen",
    ),
    words(
        "number word above ten",
        "eleven twelve twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion trillion",
    ),
    words("large number word", "hundred hundreds thousand thousands million millions billion billions trillion"),
    words(
        "ordinal", "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth hundredth last"
    ),
    looks("ordinal ending", r"st|nd|rd|th"),
    words("fraction or multiple", "half third quarter fifth double triple twice thrice once both percent per"),
    # time
    names(
        "month",
        "January February March April May June July August September October November December Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec",
    ),
    names("weekday", "Monday Tuesday Wednesday Thursday Friday Saturday Sunday Mon Tue Tues Wed Thu Thurs Fri Sat Sun"),
    words(
        "unit of time",
        "second seconds minute minutes hour hours day days night nights week weeks month months year years decade decades century centuries",
    ),
    words("season or part of the day", "spring summer autumn winter morning noon evening night midnight dawn"),
    words(
        "adverb of time",
        "now then today tomorrow yesterday soon later already still yet ago before after always never ever often sometimes usually once again",
    ),
    words("relative time", "ago since until till during while when whenever before after"),
    # place
    names(
        "US state",
        "Alabama Alaska Arizona Arkansas California Colorado Connecticut Delaware Florida Georgia Hawaii Idaho Illinois Indiana Iowa Kansas Kentucky Louisiana Maine Maryland Massachusetts Michigan Minnesota Mississippi Missouri Montana Nebraska Nevada New_Hampshire New_Jersey New_Mexico New_York Ohio Oklahoma Oregon Pennsylvania Tennessee Texas Utah Vermont Virginia Washington Wisconsin Wyoming Carolina Dakota",
    ),
    names(
        "country",
        "America Afghanistan Argentina Australia Austria Belgium Bolivia Brazil Britain Canada Chile China Colombia Cuba Denmark Egypt England Ethiopia Finland France Georgia Germany Greece Haiti Hungary India Indonesia Iran Iraq Ireland Israel Italy Japan Jordan Kenya Korea Lebanon Libya Mexico Morocco Netherlands Nicaragua Nigeria Norway Pakistan Panama Peru Philippines Poland Portugal Russia Scotland Spain Sudan Sweden Switzerland Syria Thailand Turkey Ukraine Vietnam Yemen",
    ),
    names(
        "nationality or language",
        "American African Arab Arabic Asian Australian British Canadian Chinese Cuban Dutch English European French German Greek Hebrew Indian Iranian Irish Italian Japanese Jewish Korean Latin Mexican Persian Polish Portuguese Roman Russian Scottish Soviet Spanish Swedish Syrian Turkish Vietnamese",
    ),
    names(
        "continent or sea",
        "Africa America Antarctica Asia Australia Europe Atlantic Pacific Indian Arctic Mediterranean Caribbean Baltic",
    ),
    names(
        "city",
        "Athens Baghdad Beijing Berlin Boston Chicago Damascus Jerusalem London Moscow New_York Paris Rome Babylon Vienna Washington",
    ),
    words(
        "compass direction",
        "north south east west northern southern eastern western northeast northwest southeast southwest northwards southwards",
    ),
    words(
        "geographic feature",
        "river rivers sea seas ocean lake lakes mountain mountains hill hills island islands coast valley forest desert land plain plains city cities town village border boundary",
    ),
    words(
        "place adverb",
        "here there where everywhere nowhere somewhere away home abroad above below inside outside near far",
    ),
    # persons and things
    words(
        "title of a person",
        "mr mrs ms dr sir lord lady king queen prince princess president senator captain general majesty rev prof saint duke earl emperor",
    ),
    words(
        "family member",
        "father fathers mother mothers son sons daughter daughters brother brothers sister sisters wife wives husband husbands child children parent parents family uncle aunt cousin",
    ),
    words(
        "person",
        "man men woman women people person persons boy boys girl girls child children citizen citizens fellow friend friends enemy enemies stranger neighbour neighbor",
    ),
    words("male word", "he him his himself man men boy boys father son brother king lord sir husband"),
    words("female word", "she her hers herself woman women girl girls mother daughter sister queen lady wife"),
    words(
        "body part",
        "head face eye eyes ear ears mouth tongue tooth teeth hand hands arm arms finger fingers foot feet leg knee heart blood bone bones body skin hair neck shoulder breast",
    ),
    words(
        "animal",
        "animal animals beast beasts dog dogs cat cats horse horses ox oxen sheep lamb lambs lion lions whale whales fish bird birds serpent goat goats camel camels cow bull swine",
    ),
    words("colour", "black white red green blue yellow brown grey gray gold golden silver purple scarlet color colour"),
    words("food and drink", "bread wine water oil meat fish milk honey fruit corn wheat food salt grain eat drink"),
    words(
        "religion",
        "god gods lord holy spirit church temple prayer pray priest priests prophet prophets sin sins faith heaven heavens angel angels soul bless blessed altar sacrifice gospel christian",
    ),
    names(
        "biblical name",
        "Abraham Adam Christ Daniel David Elijah Esther Herod Isaac Israel Jacob Jerusalem Jesus Jew Jews Joab John Jonathan Joseph Joshua Judah Judas Levi Manasseh Mary Moses Naomi Paul Peter Pharaoh Pilate Ruth Samson Samuel Saul Simon Solomon Zion",
    ),
    names(
        "first name",
        "Adam Alice Andrew Anne Charles David Edward Elizabeth Francis George Harry Henry Jack James Jane John Joseph Mary Michael Paul Peter Richard Robert Thomas William Antony Ben",
    ),
    words(
        "government",
        "government congress senate house president administration federal state states nation national nations union constitution republic republican democrat democratic legislature committee department secretary party election vote",
    ),
    words(
        "law",
        "law laws legal court courts judge judges justice act acts rights right treaty treaties legislation article section code crime criminal trial jury",
    ),
    words(
        "war and military",
        "war wars army armies navy naval military force forces soldier soldiers troops peace weapon weapons defense battle enemy enemies sword attack victory terror terrorists",
    ),
    words(
        "economy",
        "economy economic tax taxes trade business industry industrial market markets price prices cost costs money bank banks budget debt labor capital commerce income investment job jobs workers dollar dollars gdp exports imports",
    ),
    words(
        "measure",
        "foot feet inch inches mile miles yard yards acre acres meter meters metre metres km kilometer kilometers pound pounds ton tons kg sq cm mm",
    ),
    words(
        "science",
        "theory energy science scientific space system systems data number function theorem equation matrix vector polynomial integral derivative",
    ),
    # pronouns
    words(
        "pronoun",
        "i me my mine myself you your yours yourself yourselves he him his himself she her hers herself it its itself we us our ours ourselves they them their theirs themselves thou thee thy thine ye",
    ),
    words("subject pronoun", "i he she we they thou ye"),
    words("object pronoun", "me him us them thee"),
    words("possessive determiner", "my your his her its our their thy"),
    words("possessive pronoun", "mine yours hers ours theirs thine"),
    words("reflexive pronoun", "myself yourself himself herself itself ourselves yourselves themselves thyself"),
    words("first person singular", "i me my mine myself"),
    words("first person plural", "we us our ours ourselves"),
    words("second person", "you your yours yourself yourselves thou thee thy thine ye"),
    words("third person singular", "he him his himself she her hers herself it its itself"),
    words("third person plural", "they them their theirs themselves"),
    words("archaic second person", "thou thee thy thine ye thyself"),
    words("demonstrative", "this that these those"),
    words("question word", "who whom whose which what when where why how whether"),
    words("relative pronoun", "who whom whose which that what whoever whosoever whatever whatsoever whichever"),
    words(
        "indefinite pronoun",
        "someone somebody something anyone anybody anything everyone everybody everything nobody nothing none one each either neither both all some any many several few others another such",
    ),
    # function words
    words("article", "a an the"),
    words("indefinite article", "a an"),
    words(
        "conjunction",
        "and or but nor for yet so because although though while if unless since when whereas than that as until lest",
    ),
    words("coordinating conjunction", "and or but nor for yet so"),
    words(
        "subordinating conjunction",
        "because although though while if unless since when whereas than until lest whether",
    ),
    words(
        "preposition",
        "of in to for with on at from by about as into like through after over between out against during without before under around among upon within along across behind beyond towards toward near above below off onto unto until till per via throughout despite except concerning",
    ),
    words(
        "preposition of place",
        "in on at into onto from under over above below behind between among through across near within inside outside upon unto towards",
    ),
    words(
        "negation",
        "not no never none nor neither nothing nobody nowhere cannot without n't don doesn didn isn wasn won wouldn couldn shouldn",
    ),
    words(
        "auxiliary verb",
        "am is are was were be been being have has had having do does did can could will would shall should may might must hath doth art wast hast",
    ),
    words("modal verb", "can could will would shall should may might must ought cannot wilt shalt"),
    words("form of be", "am is are was were be been being art wast"),
    words("past form of be or have", "was were been had"),
    words("form of have", "have has had having hath hast"),
    words("form of do", "do does did done doing doth dost"),
    words("quantifier", "all some any many much few several most more less least enough each every both no half"),
    words(
        "adverb of degree",
        "very too so quite rather almost nearly just only even much more most less least enough well far still",
    ),
    words(
        "comparative or superlative",
        "more most less least better best worse worst greater greatest larger largest smaller smallest higher highest lower lowest longer older newer earlier later further",
    ),
    words(
        "linking adverb",
        "however therefore thus hence moreover furthermore nevertheless otherwise instead also besides indeed then accordingly wherefore",
    ),
    words(
        "verb of saying",
        "say says said saying saith tell tells told speak speaks spoke spoken speaking answer answered ask asked asks reply replied call called cry cried declare declared",
    ),
    words(
        "verb of motion",
        "go goes went gone going come comes came coming run ran walk walked return returned leave left send sent bring brought move moved enter entered arrive arrived",
    ),
    words(
        "verb of thinking or seeing",
        "think thinks thought know knows knew known believe believed see sees saw seen look looked hear heard feel felt remember understand find found",
    ),
    words(
        "giving and taking",
        "give gives gave given take takes took taken get gets got receive received bring brought put set keep kept hold held",
    ),
    words(
        "archaic English",
        "thou thee thy thine ye hath doth shalt wilt unto saith behold lo art hast wherefore thereof therein verily nay yea tis twas o",
    ),
    words("interjection", "o oh ah alas lo behold yes no nay yea hark well please thanks"),
    words("contraction ending", "'s 't 're 've 'll 'd 'm n't ’s ’t ’re ’ve ’ll ’d ’m"),
    words(
        "good or bad", "good great better best well fair noble bad evil worse worst wicked ill poor wrong false foul"
    ),
    words("large or small", "great large big high long wide huge small little low short narrow tiny"),
    words(
        "beginning or end",
        "begin began beginning start started first end ended ending last final finish finished stop stopped close",
    ),
    # other languages: function words that English does not have
    words(
        "German function word",
        "der die das den dem des ein eine einen einem einer und oder aber nicht ist sind war ich du er sie wir ihr ihn ihm ihnen sich mit von zu aus auf für daß wie denn so auch nach bei als vor über",
    ),
    words("German article", "der die das den dem des ein eine einen einem einer eines"),
    words(
        "French function word",
        "le la les un une des du de au aux et ou mais ne pas est sont était il elle ils nous vous je tu que qui dans par pour sur avec sans ce cette ces son sa ses leur leurs à",
    ),
    words("French article", "le la les un une des du aux"),
    words(
        "Spanish function word",
        "el los las un una y o pero no es son era él ella ellos nosotros yo tú que en por para con sin su sus de del al lo se más como",
    ),
    words("Spanish article", "el la los las un una unos unas"),
    words(
        "Italian function word",
        "il lo gli i un una uno e o ma non è sono era egli essi noi voi io tu che chi in per con senza suo sua suoi di del della dei delle degli al alla ai alle nel nella si più come",
    ),
    words("Italian article", "il lo la gli i le un una uno"),
    # punctuation
    looks("punctuation only", r" ?[^\w\s\udc80-\udcff]+"),
    looks("contains punctuation", r".*[^\w\s\udc80-\udcff].*"),
    looks("several punctuation marks", r" ?[^\w\s\udc80-\udcff]{2,}"),
    signs("full stop", "."),
    signs("comma", ","),
    looks("contains a comma", r".*,.*"),
    looks("ends with a comma", r".*,"),
    signs("colon", ":"),
    looks("contains a colon", r".*:.*"),
    signs("semicolon", ";"),
    looks("contains a semicolon", r".*;.*"),
    signs("question mark", "?"),
    signs("exclamation mark", "!"),
    looks("end of a sentence", r""" ?[.!?]+["'”’)\]]*"""),
    looks("pause inside a sentence", r" ?(?:[,;:]|--|[–—])+"),
    signs("apostrophe", "'’"),
    signs("quotation mark", "\"'“”‘’«»„`"),
    looks("contains a double quote", r""".*["“”«»].*"""),
    looks("opening quote", r""" ["'“‘«`]+|[“‘«„]+"""),
    looks("closing quote", r"""[.,]?["'”’»]+[.,;:]?"""),
    signs("bracket", "()[]{}"),
    looks("opening bracket", r""" ?[^\w\s]*[(\[{]+["'`]?"""),
    looks("closing bracket", r""" ?["'`]?[)\]}]+[^\w\s(\[{]*"""),
    looks("round bracket", r" ?[^\w\s]*[()]+[^\w\s]*"),
    looks("square bracket", r" ?[^\w\s]*[\[\]]+[^\w\s]*"),
    looks("curly bracket", r" ?[^\w\s]*[{}]+[^\w\s]*"),
    looks("angle bracket", r" ?[^\w\s]*[<>]+[^\w\s]*"),
    looks("opens and closes a bracket", r""".*(?:\(.*\)|\[.*\]|\{.*\}).*"""),
    signs("hyphen", "-"),
    signs("dash", "-–—"),
    looks("repeated sign", r" ?([^\w\s])\1+"),
    signs("slash", "/\\"),
    signs("underscore", "_"),
    looks("contains an underscore", r".*_.*"),
    signs("asterisk", "*"),
    looks("contains an asterisk", r".*\*.*"),
    signs("hash sign", "#"),
    signs("at sign", "@"),
    signs("percent sign", "%"),
    signs("ampersand", "&"),
    signs("vertical bar", "|"),
    signs("tilde", "~"),
    signs("backtick", "`"),
    looks("contains a backtick", r".*`.*"),
    signs("equals sign", "="),
    signs("plus or minus", "+-−±"),
    signs("bullet", "*-•·"),
    signs("currency sign", "$€£¥¢₹"),
    words(
        "currency word",
        "dollar dollars cent cents euro euros pound pounds shilling shillings penny pence yen usd eur gbp shekel shekels talents",
    ),
    signs("mathematical sign", "+*/=<>^%±×÷≤≥≠≈−∑∏∫∂√∞∈"),
    looks("comparison operator", r" ?(?:==|!=|<=|>=|<|>|===|!==)"),
    looks("assignment operator", r" ?(?:=|\+=|-=|\*=|/=|\|=|&=|:=)"),
    looks("logical operator", r" ?(?:&&|\|\||!|&|\||~|\^)"),
    looks("arrow", r" ?(?:->|=>|<-|>>>|-->|→|←)"),
    looks("ellipsis", r" ?(?:\.{3,}|…)"),
    # code and markup
    words(
        "Python keyword",
        "and as assert async await break class continue def del elif else except finally for from global if import in is lambda nonlocal not or pass raise return try while with yield",
    ),
    looks("Python definition", r" ?(?:def|class|lambda)"),
    looks("Python import", r" ?(?:import|from)"),
    looks("Python constant", r" ?(?:None|True|False)"),
    looks(
        "Python built-in",
        r" ?(?:len|range|str|int|float|list|dict|tuple|set|print|isinstance|super|type|object|getattr|setattr|hasattr|sorted|zip|map|any|all|min|max|sum|abs)",
    ),
    looks("Python exception", r" ?\w*(?:Error|Exception|Warning)"),
    looks("self or cls", r" ?(?:self|cls)"),
    looks("double underscore", r".*__.*"),
    looks(
        "C keyword",
        r" ?(?:auto|break|case|char|const|continue|default|do|double|else|enum|extern|float|for|goto|if|int|long|register|return|short|signed|sizeof|static|struct|switch|typedef|union|unsigned|void|volatile|while)",
    ),
    looks(
        "C type",
        r" ?(?:int|char|void|long|short|unsigned|signed|float|double|size_t|u8|u16|u32|u64|i8|i16|i64|sqlite|Vdbe|Parse|Expr)",
    ),
    looks("C preprocessor", r" ?#?(?:include|define|ifdef|ifndef|endif|undef|elif)"),
    looks(
        "control flow",
        r" ?(?:if|else|elif|for|while|do|switch|case|break|continue|return|goto|try|except|finally|raise|with|yield)",
    ),
    looks("null or boolean", r" ?(?:None|True|False|NULL|null|nil|true|false)"),
    looks("access modifier or storage", r" ?(?:static|const|extern|public|private|protected|inline|register|volatile)"),
    words(
        "SQL keyword",
        "select from where insert update delete create table index join inner outer left group order by having union values into primary key foreign references distinct limit null unique constraint alter drop trigger view begin commit rollback",
    ),
    looks("call or index", r"""\w*[(\[]+["']?"""),
    looks("statement end", r".*(?:;|\):|:)[\r\n]*"),
    looks("string delimiter", r""" ?(?:[(\[{=,]*["'`]+|["'`]+[)\]},:;.]*)"""),
    looks("comment sign", r" ?(?:#+|//+|/\*+|\*+/|\*\*|--)"),
    looks("markup sign", r""" ?(?:`{1,3}|\*{1,2}|:{2}|\.\.|_{1,2}|={2,}|-{2,}|~{2,}|</?|/?>)"""),
    words(
        "reStructuredText role",
        "ref class meth func attr mod doc term ticket versionadded versionchanged deprecated note warning seealso directive",
    ),
    words("web address", "http https www com org net html url href uri"),
    words("file ending", "py js c h txt rst html json xml css sql db csv pdf md yaml yml"),
    words(
        "documentation word",
        "default value values parameter parameters argument arguments option options returns specify specified specifies example examples see note use used using method function class object type string name names",
    ),
    words(
        "cloud service word",
        "amazon aws resource resources request response instance instances api service endpoint bucket policy role key region account id arn",
    ),
    words(
        "database word",
        "database databases table tables column columns row rows query queries index schema session engine mapper relationship field fields model models transaction",
    ),
    words(
        "programming word",
        "code function functions method methods class classes object objects variable variables module modules file files error errors test tests list dict string strings array pointer buffer memory byte bytes",
    ),
    # beginnings and endings
    *first_letters(ascii_lowercase),
    *prefixes(
        "un re in im dis en em non over mis sub pre inter fore de trans super semi anti mid under out up co com con pro per ex ab ad auto bi counter extra hyper micro mono multi neo para photo poly post pseudo quasi self tele tri ultra uni with be for al mac geo bio th wh sh ch st"
    ),
    *suffixes(
        "ing ed ly er or ion tion sion ation ment ness ity ty ful less able ible al ial ic ical ous ious ive ative ant ent ance ence ancy ency ism ist ish ize ise ized ify ate en eth est s es ies ers ings age ship hood dom ward wards like some ure ary ory y ght ck th"
    ),
)
