// The elementwise loops of the pass on a CPU, which torch's own operations leave several times slower:
// `layer_statistics` of fused.py for 8-bit operands, and the sums by group of grouped.py.
// Both read their activations once and in order. The vectors are an extension that GCC and Clang share.

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace {

constexpr int64_t SUMS = 9;  // of `layer_statistics`
constexpr int64_t ROWS = 256;  // tokens in a partial sum, whatever the number of threads
constexpr int64_t STEP = 4;  // tokens at a time, which registers and caches take best
constexpr int64_t WIDTH = 4;  // vectors at a time in sums by group
#ifdef __AVX512F__
constexpr int64_t LANES = 16;
#else
constexpr int64_t LANES = 8;
#endif

template <class T>
using Vector __attribute__((vector_size(LANES * sizeof(T)))) = T;
using Floats = Vector<float>;
using Ints = Vector<int32_t>;

template <class T>
inline Vector<T> load(const T* from) {
  Vector<T> values;
  std::memcpy(&values, from, sizeof values);
  return values;
}

inline Floats widened(const float* from) { return load(from); }

inline Floats widened(const uint16_t* from) {  // bf16 is the upper half of a float
  return (Floats)(__builtin_convertvector(load(from), Vector<uint32_t>) << 16);
}

inline Floats floor(Floats x) {
  const Floats truncated = __builtin_convertvector(__builtin_convertvector(x, Ints), Floats);
  const Floats below = truncated > x ? truncated - 1 : truncated;
  return ((x < 0x1p23f) & (x > -0x1p23f)) ? below : x;  // a larger float is whole
}

// Adds `tokens` rows to the sums (SUMS, neurons) of their block and writes their operands.
template <int tokens, class T>
void add(const T* pre, const T* post, const float* counted, const float* pre_scaling, const float* post_scaling,
         const float* dither, int64_t neurons, int64_t stride, float* sums, int8_t* operand) {
  const Floats zero = {}, one = zero + 1, limit = zero + 127;
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
      const Floats rounded = floor(y + load(dither + at)) * weight;
      const Floats kept = rounded < -limit ? -limit : rounded > limit ? limit : rounded;
      const Floats added[SUMS] = {x, square, square * x, square * square, before > zero ? weight : zero,
                                  y, y * y, rounded, rounded != kept ? one : zero};
      for (int s = 0; s < SUMS; s++) own[s] += added[s];
      const auto bytes = __builtin_convertvector(__builtin_convertvector(kept, Ints), Vector<int8_t>);
      std::memcpy(operand + t * stride + n, &bytes, sizeof bytes);
    }
    for (int s = 0; s < SUMS; s++) std::memcpy(sums + s * neurons + n, own + s, sizeof own[s]);
  }
}

// All arrays are contiguous but the operand, whose rows lie `stride` apart; partial (⌈tokens / ROWS⌉, SUMS, neurons).
template <class T>
void statistics(const T* pre, const T* post, const float* counted, const float* pre_scaling, const float* post_scaling,
                const float* dither, int64_t tokens, int64_t neurons, int64_t stride, float* partial, int8_t* operand) {
#pragma omp parallel for schedule(static)
  for (int64_t first = 0; first < tokens; first += ROWS) {
    float* sums = partial + first / ROWS * SUMS * neurons;
    std::fill(sums, sums + SUMS * neurons, 0.0f);
    const int64_t stop = std::min(tokens, first + ROWS);
    int64_t t = first;
    for (; t + STEP <= stop; t += STEP)
      add<STEP>(pre + t * neurons, post + t * neurons, counted + t, pre_scaling, post_scaling, dither + t * neurons,
                neurons, stride, sums, operand + t * stride);
    for (; t < stop; t++)
      add<1>(pre + t * neurons, post + t * neurons, counted + t, pre_scaling, post_scaling, dither + t * neurons, neurons,
             stride, sums, operand + t * stride);
  }
}

inline void increase(float* sums, Floats values) {
  values += load(sums);
  std::memcpy(sums, &values, sizeof values);
}

// The tokens order[first[r]] … of each row r, whose values x = (post − scaling[0]) · scaling[1] and x² are summed and
// added to sum[group[r]], square[group[r] mod size] and total[r ≥ even]; active, if any, counts where post > 0.
template <class T>
void grouped(const T* post, const float* scaling, const int64_t* order, const int64_t* first, const int64_t* number,
             const int64_t* group, int64_t rows, int64_t even, int64_t size, int64_t neurons, float* sum, float* square,
             double* total, float* active) {
  const Floats zero = {}, one = zero + 1;
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < neurons; n += WIDTH * LANES) {
    Floats shift[WIDTH], scale[WIDTH];
    for (int w = 0; w < WIDTH; w++) shift[w] = load(scaling + n + w * LANES), scale[w] = load(scaling + neurons + n + w * LANES);
    for (int64_t r = 0; r < rows; r++) {
      Floats x1[WIDTH] = {}, x2[WIDTH] = {}, above[WIDTH] = {};
      for (const int64_t* token = order + first[r]; token < order + first[r] + number[r]; token++) {
        for (int w = 0; w < WIDTH; w++) {
          const Floats value = widened(post + *token * neurons + n + w * LANES), x = (value - shift[w]) * scale[w];
          x1[w] += x, x2[w] += x * x, above[w] += value > zero ? one : zero;
        }
      }
      for (int w = 0; w < WIDTH; w++) {
        const int64_t at = n + w * LANES;
        increase(sum + group[r] * neurons + at, x1[w]);
        increase(square + group[r] % size * neurons + at, x2[w]);
        if (active) increase(active + group[r] * neurons + at, above[w]);
        for (int k = 0; k < LANES; k++) total[(r >= even) * neurons + at + k] += x2[w][k];
      }
    }
  }
}

}  // namespace

extern "C" void statistics_float(const float* pre, const float* post, const float* counted, const float* pre_scaling,
                                 const float* post_scaling, const float* dither, int64_t tokens, int64_t neurons,
                                 int64_t stride, float* partial, int8_t* operand) {
  statistics(pre, post, counted, pre_scaling, post_scaling, dither, tokens, neurons, stride, partial, operand);
}

extern "C" void statistics_bfloat16(const uint16_t* pre, const uint16_t* post, const float* counted,
                                    const float* pre_scaling, const float* post_scaling, const float* dither,
                                    int64_t tokens, int64_t neurons, int64_t stride, float* partial, int8_t* operand) {
  statistics(pre, post, counted, pre_scaling, post_scaling, dither, tokens, neurons, stride, partial, operand);
}

extern "C" void grouped_float(const float* post, const float* scaling, const int64_t* order, const int64_t* first,
                              const int64_t* number, const int64_t* group, int64_t rows, int64_t even, int64_t size,
                              int64_t neurons, float* sum, float* square, double* total, float* active) {
  grouped(post, scaling, order, first, number, group, rows, even, size, neurons, sum, square, total, active);
}

extern "C" void grouped_bfloat16(const uint16_t* post, const float* scaling, const int64_t* order, const int64_t* first,
                                 const int64_t* number, const int64_t* group, int64_t rows, int64_t even, int64_t size,
                                 int64_t neurons, float* sum, float* square, double* total, float* active) {
  grouped(post, scaling, order, first, number, group, rows, even, size, neurons, sum, square, total, active);
}
