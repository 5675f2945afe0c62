// The steps of a GPT-2's forward pass on a CPU that torch leaves slow: gelu_new, causal attention of one head size, affine maps where
// matrix units (AMX) are there to take them, and what predictions become when residual streams are changed.

#include <limits>
#include <numeric>
#include <vector>

#include "tiles.h"
#include "vectors.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__)
#define MATRIX_UNITS
#include <immintrin.h>
#endif

namespace {

constexpr int64_t HEAD = 64;  // numbers in a query, key or value
constexpr int64_t ROWS = 6;  // queries at a time
constexpr int64_t WIDE = LANES == 16 ? 4 : 2;  // vectors at a time: their sums for all rows stay in registers

// eˣ within two units of the last digit; for x beyond ±87 that of ±87.
inline Floats exponential(Floats x) {
  const Floats zero = {}, limit = zero + 87.0f;
  x = x > limit ? limit : x < -limit ? -limit : x;
  const Floats magic = zero + 0x1.8p23f;  // adding it rounds to a whole number
  const Floats whole = (x * 1.44269504f + magic) - magic;
  const Floats r = (x - whole * 0.693145752f) - whole * 1.42860677e-6f;
  Floats series = zero + 1.98412698e-4f;
  for (const float term : {1.38888889e-3f, 8.33333333e-3f, 4.16666667e-2f, 1.66666667e-1f, 0.5f, 1.0f, 1.0f}) series = series * r + term;
  const Ints power = (__builtin_convertvector(whole, Ints) + 127) << 23;
  return series * (Floats)power;
}

template <class T>
void gelu(const T* from, T* to, int64_t count) {
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < count; i += LANES) {
    const Floats x = widened(from + i);
    const Floats twice = x * (1.59576912f + 0.0713548163f * x * x);  // 2 √(2/π) (x + 0.044715 x³)
    narrow(to + i, x / (1.0f + exponential(-twice)));  // x (1 + tanh u) / 2 = x / (1 + exp(−2u))
  }
}

// out[r] = Σ_i left[r][i] · right[i] over `depth`, for ROWS rows and `vectors` vectors of columns.
template <int vectors>
inline void product(const float* const* left, const float* right, int64_t depth, int64_t stride, float* out, int64_t out_stride) {
  Floats sums[ROWS][vectors] = {};
  for (int64_t i = 0; i < depth; i++)
    for (int v = 0; v < vectors; v++) {
      const Floats own = load(right + i * stride + v * LANES);
      for (int r = 0; r < ROWS; r++) sums[r][v] += left[r][i] * own;
    }
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < vectors; v++) store(out + r * out_stride + v * LANES, sums[r][v]);
}

inline void product_of(int64_t columns, const float* const* left, const float* right, int64_t depth, int64_t stride, float* out,
                       int64_t out_stride) {
  int64_t at = 0;
  for (; at + WIDE * LANES <= columns; at += WIDE * LANES) product<WIDE>(left, right + at, depth, stride, out + at, out_stride);
  for (; at < columns; at += LANES) product<1>(left, right + at, depth, stride, out + at, out_stride);
}

// One head of one text: q, k, v (tokens, HEAD) with rows so many numbers apart; out (tokens, HEAD). `keys` takes
// (HEAD, stride) and `weights` (ROWS, stride) numbers.
void head(const float* q, const float* k, const float* v, const int64_t* strides, int64_t tokens, int64_t stride, float scale,
          float* keys, float* weights, float* out, int64_t out_stride) {
  const Floats lowest = Floats{} - std::numeric_limits<float>::max();
  for (int64_t t = 0; t < tokens; t++)
    for (int64_t d = 0; d < HEAD; d++) keys[d * stride + t] = k[t * strides[1] + d];
  for (int64_t first = 0; first < tokens; first += ROWS) {
    const int64_t stop = std::min(tokens, first + ROWS), seen = (stop + LANES - 1) / LANES * LANES;
    const float *queries[ROWS], *rows[ROWS];
    for (int64_t r = 0; r < ROWS; r++) queries[r] = q + std::min(first + r, tokens - 1) * strides[0], rows[r] = weights + r * stride;
    product_of(seen, queries, keys, HEAD, stride, weights, stride);
    float total[ROWS], made[ROWS * HEAD];
    for (int64_t r = 0; r < ROWS; r++) {
      float* row = weights + r * stride;
      std::fill(row + std::min(first + r + 1, tokens), row + seen, lowest[0]);  // later tokens
      Floats highest = lowest, sum = {};
      for (int64_t t = 0; t < seen; t += LANES) highest = load(row + t) > highest ? load(row + t) : highest;
      const float peak = *std::max_element((float*)&highest, (float*)&highest + LANES);
      for (int64_t t = 0; t < seen; t += LANES) {
        const Floats weight = exponential((load(row + t) - peak) * scale);
        sum += weight;
        store(row + t, weight);
      }
      total[r] = std::accumulate((float*)&sum, (float*)&sum + LANES, 0.0f);
    }
    product_of(HEAD, rows, v, stop, strides[2], made, HEAD);
    for (int64_t t = first; t < stop; t++)
      for (int64_t d = 0; d < HEAD; d++) out[t * out_stride + d] = made[(t - first) * HEAD + d] / total[t - first];
  }
}

// Kept from being multiplied and added to in one step: predictions.py, which rounds in between, must find the same logits.
inline Floats rounded(Floats x) {
  asm("" : "+x"(x));
  return x;
}

// `weighted_sums` of predictions.py: the logits of case c are (products[row] + moved · effects[effect]) · scaling + bias + along · frequency,
// less `origin`; constants are bias, frequency and log unigram (3, vocabulary), made (4, cases).
template <class T>
void predicted(const T* effects, const float* products, const int64_t* row, const int64_t* effect, const float* moved, const float* scaling,
               const float* along, const float* origin, const float* own, const float* constants, int64_t cases, int64_t vocabulary, float* made) {
  const int64_t whole = vocabulary / LANES * LANES, left = vocabulary - whole;
  const Floats zero = {};
#pragma omp parallel for schedule(static)
  for (int64_t c = 0; c < cases; c++) {
    Floats found[4] = {};
    const auto add = [&](const float* product, const T* change, const float* bias, const float* frequency, const float* unigram, Floats weight) {
      const Floats shifted = load(product) + rounded(moved[c] * widened(change));
      const Floats logit = rounded(shifted * scaling[c]) + load(bias) + rounded(along[c] * load(frequency)) - origin[c];
      const Floats likely = exponential(logit) * weight;
      found[0] += likely, found[1] += likely * logit, found[2] += likely * load(unigram), found[3] += logit > own[c] ? weight : zero;
    };
    const float *product = products + row[c] * vocabulary, *bias = constants, *frequency = bias + vocabulary, *unigram = frequency + vocabulary;
    const T* change = effects + effect[c] * vocabulary;
    for (int64_t n = 0; n < whole; n += LANES) add(product + n, change + n, bias + n, frequency + n, unigram + n, zero + 1);
    if (left) {  // the same on copies that are long enough
      float rest[5][LANES] = {};
      T moves[LANES] = {};
      std::memcpy(moves, change + whole, left * sizeof(T)), std::fill(rest[4], rest[4] + left, 1.0f);
      const float* from[4] = {product, bias, frequency, unigram};
      for (int i = 0; i < 4; i++) std::memcpy(rest[i], from[i] + whole, left * sizeof(float));
      add(rest[0], moves, rest[1], rest[2], rest[3], load(rest[4]));
    }
    for (int i = 0; i < 4; i++) made[i * cases + c] = std::accumulate((float*)&found[i], (float*)&found[i] + LANES, 0.0f);
  }
}

#ifdef MATRIX_UNITS

constexpr int64_t SIDE = 16, STEP = 32;  // rows of a tile, and columns of a sum; numbers that are multiplied in one step
constexpr int64_t TILE = SIDE * STEP;  // numbers of a tile of bf16
constexpr int64_t BLOCKS = 4;  // times 2 · SIDE rows in one task
constexpr int64_t WEIGHTS = 2 << 17;  // numbers of the weights that a task keeps in the second cache

inline __m512i widened_bits(__m256bh half) { return _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)half), 16); }

// bf16 numbers of two times sixteen floats, and of what they lack.
inline __m512i high_of(__m512 first, __m512 second) { return (__m512i)_mm512_cvtne2ps_pbh(second, first); }
inline __m512 lacking(__m512 x) { return x - (__m512)widened_bits(_mm512_cvtneps_pbh(x)); }

inline __m512 sixteen(const float* from, int64_t apart) {
  if (apart == 1) return _mm512_loadu_ps(from);
  const __m512i places = _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi32(int(apart)));
  return _mm512_i32gather_ps(places, from, 4);
}

// 2 · SIDE columns of the weights as tiles (depth / STEP, 2, TILE) for the right side, two rows' numbers side by side: `high`, and in
// `low`, unless null, what these lack. Whether that is anything.
bool right_tiles(const float* weight, int64_t depth, int64_t row, int64_t column, uint16_t* high, uint16_t* low) {
  __m512i any = _mm512_setzero_si512();
  for (int64_t k = 0; k < depth; k += STEP)
    for (int64_t half = 0; half < 2; half++)
      for (int64_t pair = 0; pair < STEP; pair += 2, high += STEP) {
        const float* from = weight + (k + pair) * row + half * SIDE * column;
        const __m512 a = sixteen(from, column), b = sixteen(from + row, column);
        const auto side_by_side = [](__m512 a, __m512 b) {
          return _mm512_or_si512(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(a)), widened_bits(_mm512_cvtneps_pbh(b)));
        };
        _mm512_storeu_si512(high, side_by_side(a, b));
        if (!low) continue;
        const __m512i rest = side_by_side(lacking(a), lacking(b));
        _mm512_storeu_si512(low, rest), low += STEP;
        any = _mm512_or_si512(any, _mm512_slli_epi16(rest, 1));  // but for the sign
      }
  return _mm512_test_epi32_mask(any, any) != 0;
}

// 2 · SIDE rows, zeros beyond `rows`, as tiles (depth / STEP, 2, TILE) for the left side; `low` as above, or null.
void left_tiles(const float* x, int64_t rows, int64_t depth, uint16_t* high, uint16_t* low) {
  for (int64_t r = 0; r < 2 * SIDE; r++)
    for (int64_t k = 0; k < depth; k += STEP) {
      const int64_t at = 2 * k * SIDE + r * STEP;
      const __m512 a = r < rows ? _mm512_loadu_ps(x + r * depth + k) : _mm512_setzero_ps();
      const __m512 b = r < rows ? _mm512_loadu_ps(x + r * depth + k + SIDE) : _mm512_setzero_ps();
      _mm512_storeu_si512(high + at, high_of(a, b));
      if (low) _mm512_storeu_si512(low + at, high_of(lacking(a), lacking(b)));
    }
}

void left_tiles(const uint16_t* x, int64_t rows, int64_t depth, uint16_t* high, uint16_t*) {
  for (int64_t r = 0; r < 2 * SIDE; r++)
    for (int64_t k = 0; k < depth; k += STEP)
      _mm512_storeu_si512(high + 2 * k * SIDE + r * STEP, r < rows ? _mm512_loadu_si512(x + r * depth + k) : _mm512_setzero_si512());
}

// left · right in four tiles of sums (2, 2, SIDE, SIDE); what is null is left out.
inline void product_of_tiles(const uint16_t* left, const uint16_t* left_low, const uint16_t* right, const uint16_t* right_low, int64_t depth, float* sums) {
  asm volatile("" : : : "memory");  // GCC 12's loads of tiles do not say that they read memory
  _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
  const auto add = [] {
    _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7); _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
  };
  for (int64_t at = 0; at < depth * 2 * SIDE; at += 2 * TILE) {
    _tile_loadd(4, left + at, 64); _tile_loadd(5, left + at + TILE, 64);
    if (right_low) {
      _tile_loadd(6, right_low + at, 64); _tile_loadd(7, right_low + at + TILE, 64);
      add();
    }
    _tile_loadd(6, right + at, 64); _tile_loadd(7, right + at + TILE, 64);
    add();
    if (left_low) {
      _tile_loadd(4, left_low + at, 64); _tile_loadd(5, left_low + at + TILE, 64);
      add();
    }
  }
  _tile_stored(0, sums, 64); _tile_stored(1, sums + SIDE * SIDE, 64);
  _tile_stored(2, sums + 2 * SIDE * SIDE, 64); _tile_stored(3, sums + 3 * SIDE * SIDE, 64);
}

// Sums and bias as some rows and 2 · SIDE columns of `out`.
template <class T>
void written(const float* sums, const float* bias, int64_t rows, int64_t columns, T* out) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t half = 0; half < 2; half++)
      narrow(out + r * columns + half * SIDE, load(sums + ((r / SIDE * 2 + half) * SIDE + r % SIDE) * SIDE) + load(bias + half * SIDE));
}

// x · weight + bias: to bf16 with bf16 numbers, or to float with two of them for each float, which leaves an error of 2⁻¹⁶.
template <class From, class To>
void affine(const From* x, const float* weight, const float* bias, int64_t rows, int64_t depth, int64_t columns, int64_t row, int64_t column, To* out) {
  constexpr int64_t WIDE = 2 * SIDE;
  constexpr bool exact = sizeof(To) == sizeof(float);
  static thread_local Lines<uint16_t> all_right;
  uint16_t* high = all_right.at((exact ? 2 : 1) * depth * columns);
  uint16_t* low = exact ? high + depth * columns : nullptr;
  bool any = false;
#pragma omp parallel for schedule(static) reduction(|| : any)
  for (int64_t c = 0; c < columns; c += WIDE) any |= right_tiles(weight + c * column, depth, row, column, high + c * depth, low ? low + c * depth : nullptr);
  if (!any) low = nullptr;
  const int64_t together = std::max(WIDE, WEIGHTS / depth / WIDE * WIDE);
#pragma omp parallel
  {
    configure_tiles();
    static thread_local Lines<uint16_t> all_left;
    uint16_t* left = all_left.at(2 * BLOCKS * WIDE * depth);
    uint16_t* left_low = exact ? left + BLOCKS * WIDE * depth : nullptr;
    alignas(64) float sums[WIDE * WIDE];
#pragma omp for schedule(dynamic)
    for (int64_t first = 0; first < rows; first += BLOCKS * WIDE) {
      const int64_t stop = std::min(rows, first + BLOCKS * WIDE);
      for (int64_t r = first; r < stop; r += WIDE)
        left_tiles(x + r * depth, stop - r, depth, left + (r - first) * depth, exact ? left_low + (r - first) * depth : nullptr);
      for (int64_t begin = 0; begin < columns; begin += together)
        for (int64_t r = first; r < stop; r += WIDE)
          for (int64_t c = begin; c < std::min(columns, begin + together); c += WIDE) {
            const int64_t at = (r - first) * depth;
            product_of_tiles(left + at, exact ? left_low + at : nullptr, high + c * depth, low ? low + c * depth : nullptr, depth, sums);
            written(sums, bias + c, std::min(WIDE, stop - r), columns, out + r * columns + c);
          }
    }
    _tile_release();
  }
}

constexpr int64_t PARTS = 3;  // bf16 numbers whose sum is a float, to its last digit
constexpr int64_t PART = 2 * SIDE * HEAD;  // numbers of 2 · SIDE queries or keys, as tiles (HEAD / STEP, 2, TILE)

// `rows` rows, `apart` numbers apart, and zeros up to 2 · SIDE, as PARTS times PART numbers for the left side.
void parts(const float* x, int64_t apart, int64_t rows, uint16_t* made) {
  for (int64_t r = 0; r < 2 * SIDE; r++)
    for (int64_t k = 0; k < HEAD; k += STEP) {
      __m512 a = r < rows ? _mm512_loadu_ps(x + r * apart + k) : _mm512_setzero_ps();
      __m512 b = r < rows ? _mm512_loadu_ps(x + r * apart + k + SIDE) : _mm512_setzero_ps();
      for (int64_t part = 0; part < PARTS; part++, a = lacking(a), b = lacking(b))
        _mm512_storeu_si512(made + part * PART + 2 * k * SIDE + r * STEP, high_of(a, b));
    }
}

// A tile for the left side as one for the right side: pairs of numbers change places across its diagonal.
void turned(const uint16_t* from, uint16_t* to) {
  __m512i rows[SIDE];
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
#pragma GCC unroll 16
  for (int i = 0; i < SIDE; i++) rows[i] = _mm512_loadu_si512(from + i * STEP);
#pragma GCC unroll 4
  for (int s = 1; s < SIDE; s *= 2) {  // squares of s rows and s pairs, two and two
    const __m512i apart = _mm512_set1_epi32(s), other = _mm512_set1_epi32(SIDE);
    const __mmask16 later = _mm512_test_epi32_mask(lane, apart);
    const __m512i upper = _mm512_mask_add_epi32(lane, later, _mm512_sub_epi32(lane, apart), other);
    const __m512i lower = _mm512_mask_add_epi32(_mm512_add_epi32(lane, apart), later, lane, other);
#pragma GCC unroll 16
    for (int i = 0; i < SIDE; i++)
      if (!(i & s)) {
        const __m512i a = rows[i], b = rows[i + s];
        rows[i] = _mm512_permutex2var_epi32(a, upper, b), rows[i + s] = _mm512_permutex2var_epi32(a, lower, b);
      }
  }
#pragma GCC unroll 16
  for (int i = 0; i < SIDE; i++) _mm512_storeu_si512(to + i * STEP, rows[i]);
}

// 2 · SIDE queries times as many keys, both in PARTS, but for the parts that are beyond a float's digits, in four tiles of scores.
inline void scores_of_tiles(const uint16_t* queries, const uint16_t* keys, float* scores) {
  asm volatile("" : : : "memory");
  _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
  for (int64_t sum = PARTS - 1; sum >= 0; sum--)  // the small ones first
    for (int64_t part = 0; part <= sum; part++)
      for (int64_t at = 0; at < PART; at += 2 * TILE) {
        const uint16_t *left = queries + part * PART + at, *right = keys + (sum - part) * PART + at;
        _tile_loadd(4, left, 64); _tile_loadd(6, right, 64); _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, right + TILE, 64); _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, left + TILE, 64); _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
      }
  _tile_stored(0, scores, 64); _tile_stored(1, scores + SIDE * SIDE, 64);
  _tile_stored(2, scores + 2 * SIDE * SIDE, 64); _tile_stored(3, scores + 3 * SIDE * SIDE, 64);
}

// eˣ for x up to 0, within two units of the last digit; for x below −70 that of −70, which is nothing beside the highest weight, 1,
// and leaves no number too small to be normal, which processors are slow with.
inline __m512 weight_of(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-70.0f), x);  // the second where either is NaN
  const __m512 whole = _mm512_roundscale_ps(x * 1.44269504f, 0), r = (x - whole * 0.693145752f) - whole * 1.42860677e-6f;
  __m512 series = _mm512_set1_ps(1.38888889e-3f);
  for (const float term : {8.33333333e-3f, 4.16666667e-2f, 1.66666667e-1f, 0.5f, 1.0f, 1.0f}) series = series * r + term;
  return _mm512_scalef_ps(series, whole);
}

// Row r of `count` sets of four tiles (2, 2, SIDE, SIDE) of scores becomes weights eˣ, x being scale · (score − the highest), for
// keys up to number `last`, 0 for later ones: as two bf16 numbers each, in tiles for the left side. Their sum.
float weighted(const float* scores, int64_t r, int64_t count, int64_t last, float scale, uint16_t* high, uint16_t* low) {
  constexpr int64_t SET = 4 * SIDE * SIDE, HALF = SIDE * SIDE;
  const float* row = scores + (r / SIDE * 2 * SIDE + r % SIDE) * SIDE;
  const int64_t whole = (last + 1) / (2 * SIDE);  // sets without a later key
  const uint32_t seen = (uint64_t(1) << (last + 1) % (2 * SIDE)) - 1;  // of the set after them
  const __mmask16 first = seen, second = seen >> SIDE;
  __m512 highest = _mm512_set1_ps(-std::numeric_limits<float>::max()), sum = _mm512_setzero_ps();
  for (int64_t c = 0; c < whole; c++)
    highest = _mm512_max_ps(highest, _mm512_max_ps(_mm512_loadu_ps(row + c * SET), _mm512_loadu_ps(row + c * SET + HALF)));
  if (whole < count) {
    highest = _mm512_mask_max_ps(highest, first, highest, _mm512_loadu_ps(row + whole * SET));
    highest = _mm512_mask_max_ps(highest, second, highest, _mm512_loadu_ps(row + whole * SET + HALF));
  }
  const __m512 peak = _mm512_set1_ps(_mm512_reduce_max_ps(highest));
  const auto write = [&](int64_t c, __mmask16 first, __mmask16 second) {
    const __m512 a = _mm512_maskz_mov_ps(first, weight_of((_mm512_loadu_ps(row + c * SET) - peak) * scale));
    const __m512 b = _mm512_maskz_mov_ps(second, weight_of((_mm512_loadu_ps(row + c * SET + HALF) - peak) * scale));
    sum += a + b;
    _mm512_storeu_si512(high + 2 * c * TILE + r * STEP, high_of(a, b));
    _mm512_storeu_si512(low + 2 * c * TILE + r * STEP, high_of(lacking(a), lacking(b)));
  };
  for (int64_t c = 0; c < whole; c++) write(c, -1, -1);
  if (whole < count) write(whole, first, second);
  return _mm512_reduce_add_ps(sum);
}

// What a thread works in, for one head.
struct Held {
  Lines<uint16_t> keys, values, queries, weights;
  Lines<float> padded, scores;
};

// As `head`: scores to a float's last digit, weights and values to 2⁻¹⁷.
void head_of_tiles(const float* q, const float* k, const float* v, const int64_t* strides, int64_t tokens, float scale, Held& held, float* out,
                   int64_t out_stride) {
  constexpr int64_t WIDE = 2 * SIDE;
  const int64_t blocks = (tokens + WIDE - 1) / WIDE, size = blocks * WIDE * HEAD;
  uint16_t *queries = held.queries.at(PARTS * PART), *keys = held.keys.at(PARTS * size);
  uint16_t *values = held.values.at(2 * size), *high = held.weights.at(2 * blocks * WIDE * WIDE), *low = high + blocks * WIDE * WIDE;
  float* scores = held.scores.at(blocks * WIDE * WIDE);
  int64_t apart = strides[2];
  if (tokens % WIDE) {
    float* padded = held.padded.at(size);
    for (int64_t t = 0; t < tokens; t++) std::memcpy(padded + t * HEAD, v + t * apart, HEAD * sizeof(float));
    std::fill(padded + tokens * HEAD, padded + size, 0.0f);
    v = padded, apart = HEAD;
  }
  for (int64_t half = 0; half < HEAD / WIDE; half++)
    right_tiles(v + half * WIDE, blocks * WIDE, apart, 1, values + half * size / 2, values + size + half * size / 2);
  for (int64_t block = 0; block < blocks; block++) {
    parts(k + block * WIDE * strides[1], strides[1], tokens - block * WIDE, queries);
    for (int64_t at = 0; at < PARTS * PART; at += TILE) turned(queries + at, keys + block * PARTS * PART + at);
  }
  for (int64_t block = 0; block < blocks; block++) {
    const int64_t first = block * WIDE, rows = std::min(WIDE, tokens - first);
    parts(q + first * strides[0], strides[0], rows, queries);
    for (int64_t c = 0; c <= block; c++) scores_of_tiles(queries, keys + c * PARTS * PART, scores + c * WIDE * WIDE);
    float total[WIDE];
    for (int64_t r = 0; r < WIDE; r++) total[r] = weighted(scores, r, block + 1, first + r, scale, high, low);
    for (int64_t half = 0; half < HEAD / WIDE; half++) {
      alignas(64) float sums[WIDE * WIDE];
      const uint16_t* own = values + half * size / 2;
      product_of_tiles(high, low, own, own + size, (block + 1) * WIDE, sums);
      for (int64_t r = 0; r < rows; r++)
        for (int64_t n = 0; n < 2; n++)
          store(out + (first + r) * out_stride + half * WIDE + n * SIDE, load(sums + ((r / SIDE * 2 + n) * SIDE + r % SIDE) * SIDE) / total[r]);
    }
  }
}

#endif

}  // namespace

#ifdef MATRIX_UNITS

// x (rows, depth) and out (rows, columns), contiguous; weight (depth, columns) with these strides. depth and columns are multiples of 32.
extern "C" int64_t affine_there() { return matrix_units(); }
extern "C" void affine_float(const float* x, const float* weight, const float* bias, int64_t rows, int64_t depth, int64_t columns,
                             int64_t row, int64_t column, int64_t exact, void* out) {
  if (exact)
    affine(x, weight, bias, rows, depth, columns, row, column, (float*)out);
  else
    affine(x, weight, bias, rows, depth, columns, row, column, (uint16_t*)out);
}
extern "C" void affine_bfloat16(const uint16_t* x, const float* weight, const float* bias, int64_t rows, int64_t depth, int64_t columns,
                                int64_t row, int64_t column, int64_t, void* out) {
  affine(x, weight, bias, rows, depth, columns, row, column, (uint16_t*)out);
}

#endif

extern "C" void gelu_float(const float* from, float* to, int64_t count) { gelu(from, to, count); }
extern "C" void gelu_bfloat16(const uint16_t* from, uint16_t* to, int64_t count) { gelu(from, to, count); }

extern "C" void predicted_float(const float* effects, const float* products, const int64_t* row, const int64_t* effect,
                                const float* moved, const float* scaling, const float* along, const float* origin, const float* own,
                                const float* constants, int64_t cases, int64_t vocabulary, float* made) {
  predicted(effects, products, row, effect, moved, scaling, along, origin, own, constants, cases, vocabulary, made);
}

extern "C" void predicted_bfloat16(const uint16_t* effects, const float* products, const int64_t* row, const int64_t* effect,
                                   const float* moved, const float* scaling, const float* along, const float* origin, const float* own,
                                   const float* constants, int64_t cases, int64_t vocabulary, float* made) {
  predicted(effects, products, row, effect, moved, scaling, along, origin, own, constants, cases, vocabulary, made);
}

// `exact` does without matrix units. q, k, v (texts, heads, tokens, HEAD), each with its three strides; out (texts, tokens, heads, HEAD), contiguous.
extern "C" void attention_float(const float* q, const float* k, const float* v, const int64_t* strides, int64_t texts,
                                int64_t heads, int64_t tokens, float scale, int64_t exact, float* out) {
  const int64_t rows[3] = {strides[2], strides[5], strides[8]};
  const int64_t stride = (tokens + LANES - 1) / LANES * LANES + LANES;  // no power of two, whose rows would share few places of a cache
  bool tiled = false;
#ifdef MATRIX_UNITS
  tiled = !exact && matrix_units();
#endif
#pragma omp parallel
  {
    std::vector<float> keys(tiled ? 0 : HEAD * stride), weights(tiled ? 0 : ROWS * stride);
#ifdef MATRIX_UNITS
    static thread_local Held held;
    if (tiled) configure_tiles();
#endif
#pragma omp for schedule(static)
    for (int64_t i = 0; i < texts * heads; i++) {
      const int64_t text = i / heads, own = i % heads;
      const float *queries = q + text * strides[0] + own * strides[1], *seen = k + text * strides[3] + own * strides[4];
      const float* values = v + text * strides[6] + own * strides[7];
      float* made = out + (text * tokens * heads + own) * HEAD;
#ifdef MATRIX_UNITS
      if (tiled) {
        head_of_tiles(queries, seen, values, rows, tokens, scale, held, made, heads * HEAD);
        continue;
      }
#endif
      head(queries, seen, values, rows, tokens, stride, scale, keys.data(), weights.data(), made, heads * HEAD);
    }
#ifdef MATRIX_UNITS
    if (tiled) _tile_release();
#endif
  }
}
