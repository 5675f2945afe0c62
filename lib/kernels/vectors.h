// Vectors of as many numbers as the processor takes at once, by an extension that GCC and Clang share.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

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

template <class V, class T>
inline void store(T* to, V values) {
  static_assert(sizeof values == LANES * sizeof(T));
  std::memcpy(to, &values, sizeof values);
}

inline Floats widened(const float* from) { return load(from); }

inline Floats widened(const uint16_t* from) {  // bf16 is the upper half of a float
  return (Floats)(__builtin_convertvector(load(from), Vector<uint32_t>) << 16);
}

inline float widened_one(const float* from) { return *from; }

inline float widened_one(const uint16_t* from) {
  const uint32_t bits = uint32_t(*from) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline void narrow(float* to, Floats values) { store(to, values); }

inline void narrow(uint16_t* to, Floats values) {  // to the nearest bf16, to the even one of two
  const auto bits = (Vector<uint32_t>)values;
  store(to, __builtin_convertvector((bits + 0x7fff + (bits >> 16 & 1)) >> 16, Vector<uint16_t>));
}

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
