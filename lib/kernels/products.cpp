// Products of 8-bit operands on a CPU with AVX-512 VNNI, added to fp32 sums: leftᵀ · right over the tokens of a chunk.
//
// Operands lie in panels of COLUMNS neurons, in the order in which `vpdpbusd` reads them: (panels, tokens / 4, COLUMNS, 4).
// The instruction multiplies unsigned by signed bytes: 128 is added to the left ones, and 128 times the sum of the right
// ones taken off.

#ifdef __AVX512VNNI__

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int64_t COLUMNS = 32;  // neurons in a panel: two vectors of sums
constexpr int64_t STEP = 4 * COLUMNS;  // bytes of a panel for four tokens
constexpr int64_t ROWS = 8;  // left neurons at a time: with two vectors each, sixteen sums in registers
constexpr int64_t GROUP = 8;  // right panels that are read from the second cache for each left one
constexpr int64_t DEPTH = 256;  // times four tokens, of which a left panel stays in the first cache

// sums += unsigned · signed, four bytes in each number; for the intrinsic GCC 12 copies all sums from register to register.
inline void multiply(__m512i& sums, __m512i positive, __m512i any) { asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(positive), "v"(any)); }

// A sum of unsigned products less 128 times the sum of the right bytes: the first may pass 2³¹ where the difference does not.
inline int32_t less(int32_t made, int32_t offset) { return int32_t(uint32_t(made) - 128u * uint32_t(offset)); }

// Adds ROWS left neurons (steps, ROWS, 4) times a right panel to sums (ROWS, ·) whose rows lie `stride` apart.
// `next` are bytes that will be wanted soon, 32 for each step.
inline void tile(const int32_t* left, const int8_t* right, int64_t steps, int32_t* sums, int64_t stride, const int8_t* next) {
  __m512i own[ROWS][2];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < 2; v++) own[r][v] = _mm512_loadu_si512(sums + r * stride + 16 * v);
  for (int64_t k = 0; k < steps; k++) {
    _mm_prefetch((const char*)next + k * STEP / 4, _MM_HINT_T1);
    const __m512i first = _mm512_loadu_si512(right + k * STEP), second = _mm512_loadu_si512(right + k * STEP + 64);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
      const __m512i row = _mm512_set1_epi32(left[k * ROWS + r]);
      multiply(own[r][0], row, first);
      multiply(own[r][1], row, second);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < 2; v++) _mm512_storeu_si512(sums + r * stride + 16 * v, own[r][v]);
}

// Part of a left panel, its numbers made positive, as (COLUMNS / ROWS, steps, ROWS, 4).
inline void arranged(const int8_t* panel, int64_t steps, int32_t* made) {
  const __m256i sign = _mm256_set1_epi8(-128);
  for (int64_t k = 0; k < steps; k++)
    for (int64_t group = 0; group < COLUMNS / ROWS; group++) {
      const __m256i rows = _mm256_loadu_si256((const __m256i*)(panel + k * STEP + group * 4 * ROWS));
      _mm256_storeu_si256((__m256i*)(made + (group * steps + k) * ROWS), _mm256_xor_si256(rows, sign));
    }
}

struct Memory {
  std::vector<int32_t> sums, left, offset;
};

// `count` right panels against the left panels from 0 to `stop`: sums (stop · COLUMNS, count · COLUMNS) in `memory`.
void product(const int8_t* left, const int8_t* right, int64_t stop, int64_t count, int64_t steps, int64_t stride, Memory& memory) {
  const int64_t width = count * COLUMNS;
  std::fill_n(memory.sums.begin(), stop * COLUMNS * width, 0);
  std::fill_n(memory.offset.begin(), width, 0);
  const __m512i all = _mm512_set1_epi8(1);
  for (int64_t first = 0; first < steps; first += DEPTH) {
    const int64_t depth = std::min(DEPTH, steps - first);
    for (int64_t p = 0; p < count; p++)
      for (int v = 0; v < 2; v++) {
        const int8_t* own = right + p * stride + first * STEP + 64 * v;
        __m512i total = _mm512_loadu_si512(memory.offset.data() + p * COLUMNS + 16 * v);
        for (int64_t k = 0; k < depth; k++) total = _mm512_dpbusd_epi32(total, all, _mm512_loadu_si512(own + k * STEP));
        _mm512_storeu_si512(memory.offset.data() + p * COLUMNS + 16 * v, total);
      }
    for (int64_t panel = 0; panel < stop; panel++) {
      arranged(left + panel * stride + first * STEP, depth, memory.left.data());
      const int8_t* next = left + std::min(panel + 1, stop - 1) * stride + first * STEP;
      for (int64_t p = 0; p < count; p++)
        for (int64_t group = 0; group < COLUMNS / ROWS; group++)
          tile(memory.left.data() + group * depth * ROWS, right + p * stride + first * STEP, depth,
               memory.sums.data() + (panel * COLUMNS + group * ROWS) * width + p * COLUMNS, width, next + group * depth * STEP / 4);
    }
  }
}

}  // namespace

// left: `panels` panels of a layer; right: `layers` layers of as many; both `steps` times four tokens, panels `stride` bytes
// apart. sums (layers, neurons, neurons), neurons = panels · COLUMNS. Where `own`, left is the one right layer: what lies
// below the diagonal is that above it.
extern "C" void products_int8(const int8_t* left, const int8_t* right, int64_t panels, int64_t layers, int64_t steps, int64_t stride,
                              int64_t own, float* sums) {
  const int64_t groups = (panels + GROUP - 1) / GROUP, neurons = panels * COLUMNS;
#pragma omp parallel
  {
    Memory memory;
    memory.sums.resize(neurons * GROUP * COLUMNS), memory.left.resize(DEPTH * COLUMNS), memory.offset.resize(GROUP * COLUMNS);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < layers * groups; task++) {
      const int64_t layer = task / groups, first = (groups - 1 - task % groups) * GROUP, count = std::min(GROUP, panels - first);
      const int64_t stop = own ? first + count : panels, width = count * COLUMNS;
      product(left, right + (layer * panels + first) * stride, stop, count, steps, stride, memory);
      float* target = sums + layer * neurons * neurons;
      for (int64_t m = 0; m < stop * COLUMNS; m++) {
        const int32_t* made = memory.sums.data() + m * width;
        float* row = target + m * neurons + first * COLUMNS;
        for (int64_t c = 0; c < width; c++) row[c] += float(less(made[c], memory.offset[c]));
      }
      if (!own) continue;
      for (int64_t c = 0; c < width; c++)  // the part above the diagonal, mirrored
        for (int64_t m = 0; m < first * COLUMNS; m++)
          target[(first * COLUMNS + c) * neurons + m] += float(less(memory.sums[m * width + c], memory.offset[c]));
    }
  }
}

// Some tokens' operands as fp32 rows (wanted, panels · COLUMNS).
extern "C" void rows_int8(const int8_t* values, const int64_t* tokens, int64_t wanted, int64_t panels, int64_t stride, float* rows) {
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < wanted; i++)
    for (int64_t panel = 0; panel < panels; panel++) {
      const int8_t* own = values + panel * stride + tokens[i] / 4 * STEP + tokens[i] % 4;
      for (int64_t c = 0; c < COLUMNS; c++) rows[(i * panels + panel) * COLUMNS + c] = own[4 * c];
    }
}

#endif
