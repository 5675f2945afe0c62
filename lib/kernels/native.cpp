// The elementwise loops of the pass on a CPU, which torch's own operations leave several times slower:
// `layer_statistics` of fused.py for 8-bit operands, histograms and examples.
// All read their activations once and in order.

#include <omp.h>

#include <limits>

#include "vectors.h"

namespace {

constexpr int64_t SUMS = 9;  // of `layer_statistics`
constexpr int64_t ROWS = 256;  // tokens in a partial sum, whatever the number of threads
constexpr int64_t STEP = 4;  // tokens at a time, which registers and caches take best
constexpr int64_t PANEL = 32;  // neurons of an operand that lie together (COLUMNS in products.cpp)

inline Floats floor(Floats x) {
  const Floats truncated = __builtin_convertvector(__builtin_convertvector(x, Ints), Floats);
  const Floats below = truncated > x ? truncated - 1 : truncated;
  return ((x < 0x1p23f) & (x > -0x1p23f)) ? below : x;  // a larger float is whole
}

// Adds `tokens` rows to the sums (SUMS, neurons) of their block and writes their operands: rows `stride` apart, or, four
// tokens at a time, in panels `stride` apart, of PANEL neurons with the four tokens of each side by side (products.cpp).
template <int tokens, bool panels, class T>
void add(const T* pre, const T* post, const float* counted, const float* pre_scaling, const float* post_scaling,
         const float* dither, int64_t neurons, int64_t stride, float* sums, int8_t* operand) {
  const Floats zero = {}, one = zero + 1, limit = zero + 127;
  for (int64_t n = 0; n < neurons; n += LANES) {
    const Floats pre_shift = load(pre_scaling + n), pre_scale = load(pre_scaling + neurons + n);
    const Floats post_shift = load(post_scaling + n), post_scale = load(post_scaling + neurons + n);
    Floats own[SUMS];
    for (int s = 0; s < SUMS; s++) own[s] = load(sums + s * neurons + n);
    Ints four = {};
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
      const Ints whole = __builtin_convertvector(kept, Ints);
      if (panels)
        four |= (whole & 255) << 8 * t;
      else
        store(operand + t * stride + n, __builtin_convertvector(whole, Vector<int8_t>));
    }
    if (panels) store((int32_t*)(operand + n / PANEL * stride) + n % PANEL, four);
    for (int s = 0; s < SUMS; s++) std::memcpy(sums + s * neurons + n, own + s, sizeof own[s]);
  }
}

// All arrays are contiguous but the operand (see `add`); partial (⌈tokens / ROWS⌉, SUMS, neurons).
template <bool panels, class T>
void statistics_of(const T* pre, const T* post, const float* counted, const float* pre_scaling, const float* post_scaling,
                   const float* dither, int64_t tokens, int64_t neurons, int64_t stride, float* partial, int8_t* operand) {
#pragma omp parallel for schedule(static)
  for (int64_t first = 0; first < tokens; first += ROWS) {
    float* sums = partial + first / ROWS * SUMS * neurons;
    std::fill(sums, sums + SUMS * neurons, 0.0f);
    const int64_t stop = std::min(tokens, first + ROWS);
    int64_t t = first;
    for (; t + STEP <= stop; t += STEP)
      add<STEP, panels>(pre + t * neurons, post + t * neurons, counted + t, pre_scaling, post_scaling, dither + t * neurons,
                        neurons, stride, sums, operand + t * (panels ? PANEL : stride));
    for (; t < stop; t++)  // none where operands are in panels
      add<1, false>(pre + t * neurons, post + t * neurons, counted + t, pre_scaling, post_scaling, dither + t * neurons, neurons,
                    stride, sums, operand + t * stride);
  }
}

template <class T>
void statistics(const T* pre, const T* post, const float* counted, const float* pre_scaling, const float* post_scaling,
                const float* dither, int64_t tokens, int64_t neurons, int64_t panels, int64_t stride, float* partial, int8_t* operand) {
  const auto loop = panels ? statistics_of<true, T> : statistics_of<false, T>;
  loop(pre, post, counted, pre_scaling, post_scaling, dither, tokens, neurons, stride, partial, operand);
}

// Σ over the counted tokens of how often a neuron's (pre − low) / width falls into each of `bins` bins, the outer ones
// taking the rest; counts (neurons, bins).
template <class T>
void histogram(const T* pre, const uint8_t* counted, const float* low, const float* width, int64_t tokens, int64_t neurons,
               int64_t bins, int64_t* counts) {
  const Floats zero = {}, highest = zero + float(bins - 1);
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < neurons; n += LANES) {
    const Floats first = load(low + n), step = load(width + n);
    for (int64_t t = 0; t < tokens; t++) {
      if (!counted[t]) continue;
      const Floats place = (widened(pre + t * neurons + n) - first) / step;
      const Ints bin = __builtin_convertvector(place > highest ? highest : place > zero ? place : zero, Ints);
      for (int k = 0; k < LANES; k++) counts[(n + k) * bins + bin[k]]++;
    }
  }
}

#ifdef __FLT16_MANT_DIG__  // compilers that know half precision

// One neuron's examples, highest first: arrays of `k`, and windows (k, 2 · radius + 1) of activations around them.
struct Examples {
  float* value;
  int32_t* block;
  int16_t* position;
  _Float16* window;
};

// The activation `t` of a text, and those around it, into their place among the examples, if it is high enough.
template <class T>
void insert(Examples kept, int64_t k, int64_t radius, float value, int32_t number, const T* post, const uint8_t* counted, int64_t t,
            int64_t context, int64_t neurons) {
  const int64_t size = 2 * radius + 1;
  int64_t place = k;
  while (place > 0 && value > kept.value[place - 1]) place--;  // at a tie the earlier one stays before
  if (place == k) return;
  const auto make_room = [=](auto* array, int64_t each) {
    std::memmove(array + (place + 1) * each, array + place * each, (k - 1 - place) * each * sizeof *array);
  };
  make_room(kept.value, 1), make_room(kept.block, 1), make_room(kept.position, 1), make_room(kept.window, size);
  kept.value[place] = value, kept.block[place] = number, kept.position[place] = int16_t(t);
  for (int64_t i = 0; i < size; i++) {
    const int64_t at = t - radius + i;
    const bool seen = at >= 0 && at < context && counted[at];
    const float own = seen ? widened_one(post + at * neurons) : std::numeric_limits<float>::quiet_NaN();
    kept.window[place * size + i] = _Float16(own > 65504 ? 65504 : own < -65504 ? -65504 : own);
  }
}

// Each neuron's two highest activations among the counted tokens of each text, into its examples, whose arrays are
// (neurons, k) and (neurons, k, 2 · radius + 1). post (texts, context, neurons); counted (texts, context).
template <class T>
void examples(const T* post, const uint8_t* counted, const int32_t* numbers, int64_t texts, int64_t context, int64_t neurons, int64_t k,
              int64_t radius, float* value, int32_t* block, int16_t* position, _Float16* window) {
  const Floats lowest = Floats{} - std::numeric_limits<float>::infinity();
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < neurons; n += LANES) {
    for (int64_t text = 0; text < texts; text++) {
      const T* own = post + text * context * neurons + n;
      Floats high = lowest, second = lowest;
      Ints at = {}, second_at = {};
      for (int64_t t = 0; t < context; t++) {
        if (!counted[text * context + t]) continue;
        const Floats x = widened(own + t * neurons);
        const Ints here = Ints{} + int32_t(t);
        const auto first_place = x > high, second_place = x > second;
        second = first_place ? high : second_place ? x : second;
        second_at = first_place ? at : second_place ? here : second_at;
        high = first_place ? x : high;
        at = first_place ? here : at;
      }
      for (int i = 0; i < LANES; i++) {
        const int64_t neuron = n + i;
        if (!(high[i] > value[neuron * k + k - 1])) continue;
        const Examples kept = {value + neuron * k, block + neuron * k, position + neuron * k, window + neuron * k * (2 * radius + 1)};
        insert(kept, k, radius, high[i], numbers[text], own + i, counted + text * context, at[i], context, neurons);
        insert(kept, k, radius, second[i], numbers[text], own + i, counted + text * context, second_at[i], context, neurons);
      }
    }
  }
}

#endif

}  // namespace

extern "C" void statistics_float(const float* pre, const float* post, const float* counted, const float* pre_scaling,
                                 const float* post_scaling, const float* dither, int64_t tokens, int64_t neurons,
                                 int64_t panels, int64_t stride, float* partial, int8_t* operand) {
  statistics(pre, post, counted, pre_scaling, post_scaling, dither, tokens, neurons, panels, stride, partial, operand);
}

extern "C" void statistics_bfloat16(const uint16_t* pre, const uint16_t* post, const float* counted,
                                    const float* pre_scaling, const float* post_scaling, const float* dither,
                                    int64_t tokens, int64_t neurons, int64_t panels, int64_t stride, float* partial,
                                    int8_t* operand) {
  statistics(pre, post, counted, pre_scaling, post_scaling, dither, tokens, neurons, panels, stride, partial, operand);
}

extern "C" void histogram_float(const float* pre, const uint8_t* counted, const float* low, const float* width, int64_t tokens,
                                int64_t neurons, int64_t bins, int64_t* counts) {
  histogram(pre, counted, low, width, tokens, neurons, bins, counts);
}

extern "C" void histogram_bfloat16(const uint16_t* pre, const uint8_t* counted, const float* low, const float* width,
                                   int64_t tokens, int64_t neurons, int64_t bins, int64_t* counts) {
  histogram(pre, counted, low, width, tokens, neurons, bins, counts);
}

#ifdef __FLT16_MANT_DIG__

extern "C" void examples_float(const float* post, const uint8_t* counted, const int32_t* numbers, int64_t texts, int64_t context,
                               int64_t neurons, int64_t k, int64_t radius, float* value, int32_t* block, int16_t* position,
                               _Float16* window) {
  examples(post, counted, numbers, texts, context, neurons, k, radius, value, block, position, window);
}

extern "C" void examples_bfloat16(const uint16_t* post, const uint8_t* counted, const int32_t* numbers, int64_t texts,
                                  int64_t context, int64_t neurons, int64_t k, int64_t radius, float* value, int32_t* block,
                                  int16_t* position, _Float16* window) {
  examples(post, counted, numbers, texts, context, neurons, k, radius, value, block, position, window);
}

#endif
