// Products of 8-bit operands on a CPU with AVX-512 VNNI, added to fp32 sums: leftᵀ · right over the tokens of a chunk.
//
// Operands lie in panels of COLUMNS neurons, in the order in which `vpdpbusd` reads them: (panels, tokens / 4, COLUMNS, 4).
// The instruction multiplies unsigned by signed bytes: 128 is added to the left ones, and 128 times the sum of the right
// ones taken off. Matrix units (AMX) read right operands in the same order, 16 neurons and 64 tokens at a time, and left ones
// by neuron; they multiply signed bytes.

#ifdef __AVX512VNNI__

#include <immintrin.h>

#include "tiles.h"

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

// What one thread works in: the sums of its task, a part of a left panel in order, and what is to be taken off the sums.
struct Memory {
  int32_t *sums, *left, *offset;
};

// `count` right panels against `rows` left ones, all `steps` long and `stride` bytes apart: sums (rows · COLUMNS, count · COLUMNS)
// in `memory`, and what is to be taken off them in `offset`.
void product(const int8_t* left, const int8_t* right, int64_t rows, int64_t count, int64_t steps, int64_t stride, const Memory& memory) {
  const int64_t width = count * COLUMNS;
  const __m512i all = _mm512_set1_epi8(1);
  for (int64_t first = 0; first < steps; first += DEPTH) {
    const int64_t depth = std::min(DEPTH, steps - first);
    for (int64_t p = 0; p < count; p++)
      for (int v = 0; v < 2; v++) {
        const int8_t* own = right + p * stride + first * STEP + 64 * v;
        __m512i total = _mm512_loadu_si512(memory.offset + p * COLUMNS + 16 * v);
        for (int64_t k = 0; k < depth; k++) total = _mm512_dpbusd_epi32(total, all, _mm512_loadu_si512(own + k * STEP));
        _mm512_storeu_si512(memory.offset + p * COLUMNS + 16 * v, total);
      }
    for (int64_t panel = 0; panel < rows; panel++) {
      arranged(left + panel * stride + first * STEP, depth, memory.left);
      const int8_t* next = left + std::min(panel + 1, rows - 1) * stride + first * STEP;
      for (int64_t p = 0; p < count; p++)
        for (int64_t group = 0; group < COLUMNS / ROWS; group++)
          tile(memory.left + group * depth * ROWS, right + p * stride + first * STEP, depth,
               memory.sums + (panel * COLUMNS + group * ROWS) * width + p * COLUMNS, width, next + group * depth * STEP / 4);
    }
  }
}

// Sixteen sums of row m from column c on, as `product` leaves them.
inline const int32_t* by_rows(const Memory& memory, int64_t m, int64_t c, int64_t count) { return memory.sums + m * count * COLUMNS + c; }

#ifdef __AMX_INT8__

constexpr int64_t TILE = 16;  // rows of a tile, each of 64 bytes: left neurons, or right steps; also sums in a row
constexpr int64_t TILE_BYTES = 64 * TILE, TILE_SUMS = TILE * TILE;
constexpr int64_t DEEP = 8;  // tiles of steps, as DEPTH: shorter, since right panels pass through the first cache faster

constexpr int64_t TOGETHER = 16;  // left panels of a task

// The first step of a tile: the last two overlap where `steps` is no multiple of TILE.
inline int64_t start_of(int64_t tile, int64_t steps) { return std::min(tile * TILE, steps - TILE); }

// A left panel as (tiles of steps, 2, 16 neurons, 16 steps, 4); of steps that two tiles hold the second has zeros.
void by_neuron(const int8_t* panel, int64_t steps, int8_t* made) {
  for (int64_t tile = 0; tile * TILE < steps; tile++) {
    const int64_t start = start_of(tile, steps), twice = tile * TILE - start;
    for (int64_t half = 0; half < 2; half++, made += TILE_BYTES) {
      int32_t in[TILE][TILE], out[TILE][TILE];
      for (int k = 0; k < TILE; k++) std::memcpy(in[k], panel + (start + k) * STEP + 64 * half, 64);
      for (int n = 0; n < TILE; n++)
        for (int k = 0; k < TILE; k++) out[n][k] = k < twice ? 0 : in[k][n];
      std::memcpy(made, out, TILE_BYTES);
    }
  }
}

// Adds a left panel (from `by_neuron`) times a right one to four tiles of sums, for `depth` tiles of steps from `first` on, and
// has what follows brought nearer: a part of the next left panel, of the next steps of the right ones, and the next sums.
inline void tiles(const int8_t* left, const int8_t* right, int64_t first, int64_t depth, int64_t steps, int32_t* sums, const int8_t* next,
                  const int8_t* later) {
  asm volatile("" : : : "memory");  // GCC 12's loads of tiles do not say that they read memory
  _tile_loadd(0, sums, 64);
  _tile_loadd(1, sums + TILE_SUMS, 64);
  _tile_loadd(2, sums + 2 * TILE_SUMS, 64);
  _tile_loadd(3, sums + 3 * TILE_SUMS, 64);
  for (int64_t tile = 0; tile < depth; tile++) {
    const int8_t *a = left + 2 * (first + tile) * TILE_BYTES, *b = right + start_of(first + tile, steps) * STEP;
    for (int64_t i = 0; i < 4; i++) _mm_prefetch((const char*)next + 64 * (4 * tile + i), _MM_HINT_T1);
    for (int64_t i = 0; i < 2; i++) _mm_prefetch((const char*)later + 64 * (2 * tile + i), _MM_HINT_T1);
    for (int64_t i = 0; i < 8; i++) _mm_prefetch((const char*)(sums + 4 * TILE_SUMS) + 64 * (8 * tile + i), _MM_HINT_T0);
    _tile_loadd(4, a, 64);
    _tile_loadd(6, b, STEP);
    _tile_dpbssd(0, 4, 6);
    _tile_loadd(7, b + 64, STEP);
    _tile_dpbssd(1, 4, 7);
    _tile_loadd(5, a + TILE_BYTES, 64);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + TILE_SUMS, 64);
  _tile_stored(2, sums + 2 * TILE_SUMS, 64);
  _tile_stored(3, sums + 3 * TILE_SUMS, 64);
}

// As `product`, with left panels from `by_neuron`, and sums as (rows, count, 2, 2, 16, 16).
void product_of_tiles(const int8_t* left, const int8_t* right, int64_t rows, int64_t count, int64_t steps, int64_t stride, const Memory& memory) {
  const int64_t n_tiles = (steps + TILE - 1) / TILE, bytes = 2 * TILE_BYTES, apart = n_tiles * bytes;
  for (int64_t first = 0; first < n_tiles; first += DEEP) {
    const int64_t depth = std::min(DEEP, n_tiles - first), ahead = std::min(first + DEEP, n_tiles - 1);
    for (int64_t panel = 0; panel < rows; panel++)
      for (int64_t p = 0; p < count; p++) {
        const int64_t call = panel * count + p;  // TOGETHER of them bring one right panel's next steps, in equal parts
        const int8_t* next = left + (panel + 1 < rows ? (panel + 1) * apart + first * bytes : ahead * bytes) + p * depth * 256;
        const int8_t* later = right + call / TOGETHER % count * stride + start_of(ahead, steps) * STEP + call % TOGETHER * depth * 128;
        tiles(left + panel * apart, right + p * stride, first, depth, steps, memory.sums + 4 * TILE_SUMS * call, next, later);
      }
  }
}

// As `by_rows`, of `product_of_tiles`.
inline const int32_t* by_tiles(const Memory& memory, int64_t m, int64_t c, int64_t count) {
  return memory.sums + (m / COLUMNS * count + c / COLUMNS) * 4 * TILE_SUMS + (m % COLUMNS / TILE * 2 + c % COLUMNS / TILE) * TILE_SUMS + m % TILE * TILE;
}

#endif

}  // namespace

// left: `panels` panels of a layer; right: `layers` layers of as many; both `steps` times four tokens, panels `stride` bytes
// apart. sums (layers, neurons, neurons), neurons = panels · COLUMNS. Where `own`, left is the one right layer: what lies
// below the diagonal is that above it.
extern "C" void products_int8(const int8_t* left, const int8_t* right, int64_t panels, int64_t layers, int64_t steps, int64_t stride,
                              int64_t own, float* sums) {
  const int64_t neurons = panels * COLUMNS;
  auto multiplied = product;
  auto found = by_rows;
  int64_t together = panels, apart = stride;  // left panels of a task, and bytes between them
#ifdef __AMX_INT8__
  static thread_local Lines<int8_t> ordered;
  const bool tiled = steps >= TILE && matrix_units();
  if (tiled) {
    together = TOGETHER, apart = (steps + TILE - 1) / TILE * 2 * TILE_BYTES;
    multiplied = product_of_tiles, found = by_tiles;
    int8_t* made = ordered.at(panels * apart);
#pragma omp parallel for schedule(static)
    for (int64_t panel = 0; panel < panels; panel++) by_neuron(left + panel * stride, steps, made + panel * apart);
    left = made;
  }
#endif
  const int64_t groups = (panels + GROUP - 1) / GROUP, parts = (panels + together - 1) / together;
#pragma omp parallel
  {
#ifdef __AMX_INT8__
    if (tiled) configure_tiles();
#endif
    static thread_local Lines<int32_t> all_sums, all_left, all_offsets;
    const Memory memory = {all_sums.at(std::min(together, panels) * GROUP * COLUMNS * COLUMNS), all_left.at(DEPTH * COLUMNS), all_offsets.at(GROUP * COLUMNS)};
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < layers * groups * parts; task++) {
      const int64_t layer = task / parts / groups, first = (groups - 1 - task / parts % groups) * GROUP;
      const int64_t begin = task % parts * together, count = std::min(GROUP, panels - first), width = count * COLUMNS;
      const int64_t rows = std::min(begin + together, own ? first + count : panels) - begin;
      if (rows <= 0) continue;
      std::fill_n(memory.sums, rows * COLUMNS * width, 0), std::fill_n(memory.offset, width, 0);
      multiplied(left + begin * apart, right + (layer * panels + first) * stride, rows, count, steps, stride, memory);
      float* target = sums + layer * neurons * neurons;
      for (int64_t m = 0; m < rows * COLUMNS; m++)
        for (int64_t c = 0; c < width; c += 16) {
          const int32_t* made = found(memory, m, c, count);
          float* row = target + (begin * COLUMNS + m) * neurons + first * COLUMNS + c;
          __builtin_prefetch(row + 4 * neurons, 1);  // each row is another page
          for (int64_t i = 0; i < 16; i++) row[i] += float(less(made[i], memory.offset[c + i]));
        }
      if (!own) continue;
      for (int64_t c = 0; c < width; c += 16)  // the part above the diagonal, mirrored
        for (int64_t i = 0; i < 16; i++)
          for (int64_t m = 0; m < std::min(rows, first - begin) * COLUMNS; m++)
            target[(first * COLUMNS + c + i) * neurons + begin * COLUMNS + m] += float(less(found(memory, m, c, count)[i], memory.offset[c + i]));
    }
#ifdef __AMX_INT8__
    if (tiled) _tile_release();
#endif
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
