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
