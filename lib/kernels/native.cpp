// The loops of the pass on a CPU, which torch's own operations leave several times slower: `layer_statistics` of fused.py,
// and the sums of followed.py. Both read their activations once.

#include <omp.h>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include "vectors.h"

namespace {

constexpr int64_t SUMS = 7;  // of `layer_statistics`
constexpr int64_t ROWS = 256;  // tokens in a partial sum, whatever the number of threads
constexpr int64_t STEP = 4;  // tokens at a time, which registers and caches take best

// Adds `tokens` rows to the sums (SUMS, neurons) of their block and writes their operands, rows `stride` apart.
template <int tokens, class T, class O>
void add(const T* pre, const T* post, const float* counted, const float* sign, const float* pre_scaling, const float* post_scaling,
         int64_t neurons, int64_t stride, float* sums, O* operand) {
  const Floats zero = {};
  for (int64_t n = 0; n < neurons; n += LANES) {
    const Floats pre_shift = load(pre_scaling + n), pre_scale = load(pre_scaling + neurons + n);
    const Floats post_shift = load(post_scaling + n), post_scale = load(post_scaling + neurons + n);
    Floats own[SUMS];
    for (int s = 0; s < SUMS; s++) own[s] = load(sums + s * neurons + n);
    for (int t = 0; t < tokens; t++) {
      const int64_t at = t * neurons + n;
      const Floats before = widened(pre + at), weight = zero + counted[t];
      const Floats x = (before - pre_shift) * pre_scale * weight, square = x * x;
      const Floats y = (widened(post + at) - post_shift) * post_scale * weight;
      const Floats added[SUMS] = {x, square, square * x, square * square, before > zero ? weight : zero, y, y * y};
      for (int s = 0; s < SUMS; s++) own[s] += added[s];
      narrow(operand + t * stride + n, y * (zero + sign[t]));
    }
    for (int s = 0; s < SUMS; s++) std::memcpy(sums + s * neurons + n, own + s, sizeof own[s]);
  }
}

// All arrays are contiguous but the operand, whose rows are `stride` apart; partial (⌈tokens / ROWS⌉, SUMS, neurons).
template <class T, class O>
void statistics_of(const T* pre, const T* post, const float* counted, const float* sign, const float* pre_scaling,
                   const float* post_scaling, int64_t tokens, int64_t neurons, int64_t stride, float* partial, O* operand) {
#pragma omp parallel for schedule(static)
  for (int64_t first = 0; first < tokens; first += ROWS) {
    float* sums = partial + first / ROWS * SUMS * neurons;
    std::fill(sums, sums + SUMS * neurons, 0.0f);
    const int64_t stop = std::min(tokens, first + ROWS);
    int64_t t = first;
    for (; t + STEP <= stop; t += STEP)
      add<STEP>(pre + t * neurons, post + t * neurons, counted + t, sign + t, pre_scaling, post_scaling, neurons, stride, sums,
                operand + t * stride);
    for (; t < stop; t++)
      add<1>(pre + t * neurons, post + t * neurons, counted + t, sign + t, pre_scaling, post_scaling, neurons, stride, sums,
             operand + t * stride);
  }
}

template <class T>
void statistics(const T* pre, const T* post, const float* counted, const float* sign, const float* pre_scaling,
                const float* post_scaling, int64_t tokens, int64_t neurons, int64_t stride, int64_t half, float* partial, void* operand) {
  if (half)
    statistics_of(pre, post, counted, sign, pre_scaling, post_scaling, tokens, neurons, stride, partial, (uint16_t*)operand);
  else
    statistics_of(pre, post, counted, sign, pre_scaling, post_scaling, tokens, neurons, stride, partial, (float*)operand);
}

inline float total(Floats values) {
  float sum = 0;
  for (int k = 0; k < LANES; k++) sum += values[k];
  return sum;
}

// Σ x y over `tokens` tokens, a multiple of 64.
inline float dot(const float* x, const float* y, int64_t tokens) {
  Floats even = {}, odd = {};
  for (int64_t t = 0; t < tokens; t += 2 * LANES) even += load(x + t) * load(y + t), odd += load(x + t + LANES) * load(y + t + LANES);
  return total(even + odd);
}

inline float dot(const uint16_t* x, const uint16_t* y, int64_t tokens) {
#ifdef __AVX512BF16__
  const auto part = [](const uint16_t* from) { return (__m512bh)_mm512_loadu_si512(from); };
  __m512 even = _mm512_setzero_ps(), odd = even;
  for (int64_t t = 0; t < tokens; t += 64) {
    even = _mm512_dpbf16_ps(even, part(x + t), part(y + t));
    odd = _mm512_dpbf16_ps(odd, part(x + t + 32), part(y + t + 32));
  }
  return _mm512_reduce_add_ps(_mm512_add_ps(even, odd));
#else
  Floats even = {}, odd = {};
  for (int64_t t = 0; t < tokens; t += 2 * LANES)
    even += widened(x + t) * widened(y + t), odd += widened(x + t + LANES) * widened(y + t + LANES);
  return total(even + odd);
#endif
}

// Adds Σ x y over the tokens to the sum of each pair of a neuron of x with one of y; both neuron-major (neurons, tokens).
template <class T>
void follow(const T* x, const T* y, const int64_t* left, const int64_t* right, int64_t pairs, int64_t tokens, float* sums) {
#pragma omp parallel for schedule(static)
  for (int64_t p = 0; p < pairs; p++) sums[p] += dot(x + left[p] * tokens, y + right[p] * tokens, tokens);
}

}  // namespace

extern "C" void statistics_float(const float* pre, const float* post, const float* counted, const float* sign,
                                 const float* pre_scaling, const float* post_scaling, int64_t tokens, int64_t neurons,
                                 int64_t stride, int64_t half, float* partial, void* operand) {
  statistics(pre, post, counted, sign, pre_scaling, post_scaling, tokens, neurons, stride, half, partial, operand);
}

extern "C" void statistics_bfloat16(const uint16_t* pre, const uint16_t* post, const float* counted, const float* sign,
                                    const float* pre_scaling, const float* post_scaling, int64_t tokens, int64_t neurons,
                                    int64_t stride, int64_t half, float* partial, void* operand) {
  statistics(pre, post, counted, sign, pre_scaling, post_scaling, tokens, neurons, stride, half, partial, operand);
}

extern "C" void follow_float(const float* x, const float* y, const int64_t* left, const int64_t* right, int64_t pairs,
                             int64_t tokens, float* sums) {
  follow(x, y, left, right, pairs, tokens, sums);
}

extern "C" void follow_bfloat16(const uint16_t* x, const uint16_t* y, const int64_t* left, const int64_t* right, int64_t pairs,
                                int64_t tokens, float* sums) {
  follow(x, y, left, right, pairs, tokens, sums);
}
