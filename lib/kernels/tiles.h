// What loops on matrix units (AMX) share: leave to use them, their configuration, and memory that suits them.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

// Memory from the start of a cache line on, which tiles and vectors read faster; it is kept from one call to the next.
template <class T>
struct Lines {
  std::vector<T> held;
  T* at(int64_t size) {
    if (int64_t(held.size()) < size + 64) held.resize(size + 64);
    return (T*)(((uintptr_t)held.data() + 63) / 64 * 64);
  }
};

#ifdef __AMX_TILE__

#include <sys/syscall.h>
#include <unistd.h>

// Whether the system lets this process use the matrix units (ARCH_REQ_XCOMP_PERM for XTILEDATA).
inline bool matrix_units() {
  static const bool granted = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
  return granted;
}

// All eight tiles whole, for this thread. GCC 12's intrinsic does not say that it reads all of the configuration.
inline void configure_tiles() {
  struct { uint8_t palette = 1, start = 0, reserved[14] = {}; uint16_t bytes[16] = {}; uint8_t rows[16] = {}; } tiles;
  for (int t = 0; t < 8; t++) tiles.bytes[t] = 64, tiles.rows[t] = 16;
  asm volatile("ldtilecfg %0" : : "m"(tiles) : "memory");
}

#endif
