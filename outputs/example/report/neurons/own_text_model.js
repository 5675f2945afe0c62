/* A seed of GPT-2's kind in plain JavaScript: from a text to the activations of its neurons. No page is needed, so that
   it can run in a worker. lib/report/own_text.py writes the arrays, each {shape, values}, and the settings. */
function ownTextModel(arrays, settings) { // eslint-disable-line no-unused-vars
  'use strict';
  const {layers, heads, epsilon, context, bos, uncounted} = settings, width = arrays.wte.shape[1], AT_ONCE = 4;

  /* ------------------------------------------------------------ tokens */

  const words = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;
  const ofByte = arrays.bytes.values, merges = new Map(), pair = (left, right) => left * 2 ** 20 + right;
  for (let rank = 0, list = arrays.merges.values; 3 * rank < list.length; rank++) merges.set(pair(list[3 * rank], list[3 * rank + 1]), {rank, made: list[3 * rank + 2]});

  function merged(ids) { // the earliest merge first, from the left
    for (;;) {
      let best = null, where = -1;
      for (let at = 0; at + 1 < ids.length; at++) {
        const merge = merges.get(pair(ids[at], ids[at + 1]));
        if (merge && (!best || merge.rank < best.rank)) { best = merge; where = at; }
      }
      if (!best) return ids;
      ids.splice(where, 2, best.made);
    }
  }

  const known = new Map(); // words that were merged before
  function encode(text) {
    const ids = [];
    for (const [word] of text.matchAll(words)) {
      if (!known.has(word)) known.set(word, merged(Array.from(new TextEncoder().encode(word), byte => ofByte[byte])));
      ids.push(...known.get(word));
    }
    return ids;
  }

  /* ------------------------------------------------------------ layers; all matrices have one row a token */

  const row = (name, index) => { // of an embedding
    const scale = arrays[`${name}.scale`].values[index];
    return Float32Array.from(arrays[name].values.subarray(index * width, (index + 1) * width), one => one * scale);
  };

  function linear(input, name) {
    const {shape: [outputs, inputs], values} = arrays[name], scale = arrays[`${name}.scale`].values, bias = arrays[`${name}.bias`].values;
    const tokens = input.length / inputs, made = new Float32Array(tokens * outputs);
    for (let output = 0; output < outputs; output++) {
      const from = output * inputs, step = scale[output], shift = bias[output];
      for (let token = 0; token < tokens; token += AT_ONCE) { // one reading of the weights for four tokens
        let a = 0, b = 0, c = 0, d = 0, one = token * inputs, two = one + inputs, three = two + inputs, four = three + inputs;
        for (let index = 0; index < inputs; index++) {
          const weight = values[from + index];
          a += weight * input[one + index]; b += weight * input[two + index]; c += weight * input[three + index]; d += weight * input[four + index];
        }
        const at = token * outputs + output;
        made[at] = a * step + shift; made[at + outputs] = b * step + shift; made[at + 2 * outputs] = c * step + shift; made[at + 3 * outputs] = d * step + shift;
      }
    }
    return made;
  }

  function normed(input, name) {
    const weight = arrays[`${name}.weight`].values, bias = arrays[`${name}.bias`].values, made = new Float32Array(input.length);
    for (let from = 0; from < input.length; from += width) {
      let mean = 0, variance = 0;
      for (let index = 0; index < width; index++) mean += input[from + index] / width;
      for (let index = 0; index < width; index++) variance += (input[from + index] - mean) ** 2 / width;
      const length = Math.sqrt(variance + epsilon);
      for (let index = 0; index < width; index++) made[from + index] = (input[from + index] - mean) / length * weight[index] + bias[index];
    }
    return made;
  }

  function attention(input, layer) {
    const all = linear(input, `h.${layer}.attn.c_attn`), size = width / heads, tokens = input.length / width;
    const mixed = new Float32Array(input.length), share = new Float32Array(tokens);
    for (let head = 0; head < heads; head++) {
      for (let token = 0; token < tokens; token++) {
        const query = token * 3 * width + head * size;
        let most = -Infinity, sum = 0;
        for (let other = 0; other <= token; other++) {
          const key = other * 3 * width + width + head * size;
          let score = 0;
          for (let index = 0; index < size; index++) score += all[query + index] * all[key + index];
          share[other] = score / Math.sqrt(size);
          most = Math.max(most, share[other]);
        }
        for (let other = 0; other <= token; other++) sum += share[other] = Math.exp(share[other] - most);
        for (let other = 0; other <= token; other++) {
          const value = other * 3 * width + 2 * width + head * size, part = share[other] / sum;
          for (let index = 0; index < size; index++) mixed[token * width + head * size + index] += part * all[value + index];
        }
      }
    }
    return linear(mixed, `h.${layer}.attn.c_proj`);
  }

  const gelu = one => .5 * one * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (one + .044715 * one ** 3)));
  const add = (sum, more) => { for (let index = 0; index < sum.length; index++) sum[index] += more[index]; };

  function run(text) { // {tokens, counted, activations: tokens × neurons of each layer, complete}, BOS first
    const ids = encode(text), tokens = [bos, ...ids.slice(0, context - 1)], rows = Math.ceil(tokens.length / AT_ONCE) * AT_ONCE;
    const stream = new Float32Array(rows * width), activations = [];
    tokens.forEach((token, at) => {
      const position = row('wpe', at);
      stream.set(row('wte', token).map((one, index) => one + position[index]), at * width);
    });
    for (let layer = 0; layer < layers; layer++) {
      add(stream, attention(normed(stream, `h.${layer}.ln_1`), layer));
      const post = linear(normed(stream, `h.${layer}.ln_2`), `h.${layer}.mlp.c_fc`).map(gelu);
      activations.push(post.subarray(0, post.length / rows * tokens.length));
      if (layer + 1 < layers) add(stream, linear(post, `h.${layer}.mlp.c_proj`));
    }
    return {tokens, counted: tokens.map(token => !uncounted.includes(token)), activations, complete: ids.length < context};
  }

  return {encode, run};
}
