// The steps of a GPT-2's forward pass on a CPU that torch leaves slow: gelu_new, causal attention of one head size, and what
// predictions become when residual streams are changed.

#include <limits>
#include <numeric>
#include <vector>

#include "vectors.h"

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

}  // namespace

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

// q, k, v (texts, heads, tokens, HEAD), each with its three strides; out (texts, tokens, heads, HEAD), contiguous.
extern "C" void attention_float(const float* q, const float* k, const float* v, const int64_t* strides, int64_t texts,
                                int64_t heads, int64_t tokens, float scale, float* out) {
  const int64_t rows[3] = {strides[2], strides[5], strides[8]};
  const int64_t stride = (tokens + LANES - 1) / LANES * LANES + LANES;  // no power of two, whose rows would share few places of a cache
#pragma omp parallel
  {
    std::vector<float> keys(HEAD * stride), weights(ROWS * stride);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < texts * heads; i++) {
      const int64_t text = i / heads, own = i % heads;
      head(q + text * strides[0] + own * strides[1], k + text * strides[3] + own * strides[4], v + text * strides[6] + own * strides[7], rows,
           tokens, stride, scale, keys.data(), weights.data(), out + (text * tokens * heads + own) * HEAD, heads * HEAD);
    }
  }
}
