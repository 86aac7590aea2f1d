// A convolution's gradient to its weights on AVX-512 and AVX2, where oneDNN reaches half of what the CPU can do.
//
// Per kernel tap it is a matrix product over pixels: dw[i][o] = sum over p of x[p + tap][i] * dz[p][o]. The image is
// taken in bands of rows. Each band is first packed into what the inner loop reads, in order and without borders:
// tiles of kInputs input channels and of kLanes * kVectors output channels, zeros around the image. In the inner loop
// kSums vector registers hold one tile of dw while the band's pixels pass by; the other ones are for what comes in.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "numbers.h"

#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
#define WEIGHTS_GRADIENT

// A vector register of float32, how many of the processor's 32 or 16 hold sums, and how many of these lie across the
// output channels: with three of them AVX2 had none to spare, and took a fifth longer.
struct Vector {
#ifdef __AVX512F__
  using Register = __m512;
  static constexpr int kLanes = 16, kSums = 24, kAcross = 3;
  static Register Load(const float* from) { return _mm512_loadu_ps(from); }
  static void Store(float* to, Register numbers) { _mm512_storeu_ps(to, numbers); }
  static Register Repeat(float number) { return _mm512_set1_ps(number); }
  static Register MultiplyAdd(Register a, Register b, Register sum) { return _mm512_fmadd_ps(a, b, sum); }
#else
  using Register = __m256;
  static constexpr int kLanes = 8, kSums = 12, kAcross = 2;
  static Register Load(const float* from) { return _mm256_loadu_ps(from); }
  static void Store(float* to, Register numbers) { _mm256_storeu_ps(to, numbers); }
  static Register Repeat(float number) { return _mm256_set1_ps(number); }
  static Register MultiplyAdd(Register a, Register b, Register sum) { return _mm256_fmadd_ps(a, b, sum); }
#endif
};

// What one step of the inner loop takes in, per channel in 32 bits: one pixel in float32...
template <class E>
struct Step;

template <>
struct Step<float> {
  static constexpr int kPixels = 1;
  using Word = float;
  static float Join(float first, float) { return first; }
  static Vector::Register Add(Vector::Register sum, const float* x, Vector::Register dz) {
    return Vector::MultiplyAdd(Vector::Repeat(*x), dz, sum);
  }
};

// ... or, where the CPU multiplies bfloat16, two neighbouring ones.
#ifdef __AVX512BF16__
template <>
struct Step<bf16> {
  static constexpr int kPixels = 2;
  using Word = uint32_t;
  static uint32_t Join(bf16 first, bf16 second) { return first.bits | uint32_t{second.bits} << 16; }
  static Vector::Register Add(Vector::Register sum, const uint32_t* x, Vector::Register dz) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(*x), (__m512bh)dz);
  }
};
#endif

// Copies one row of pixels, from pixel `begin` on, into tiles of channels: to[tile][step][channel]. What lies
// outside of the row, and all of a row that is null, counts as zero.
template <class E>
void PackRow(const E* row, const E* zeros, int64_t begin, int64_t width, int64_t channels, int64_t tile,
             int64_t steps, int64_t tile_stride, typename Step<E>::Word* to) {
  auto pixel = [&](int64_t p) { return row != nullptr && p >= 0 && p < width ? row + p * channels : zeros; };
  for (int64_t step = 0; step < steps; step++) {
    const E* first = pixel(begin + step * Step<E>::kPixels);
    const E* second = pixel(begin + step * Step<E>::kPixels + 1);
    for (int64_t c = 0; c < channels; c += tile) {
      auto* part = to + c / tile * tile_stride + step * tile;
      int64_t count = std::min(tile, channels - c);
#pragma omp simd
      for (int64_t i = 0; i < count; i++) part[i] = Step<E>::Join(first[c + i], second[c + i]);
    }
  }
}

// Sizes in memory of the packed band and of the sums, for one thread.
template <class E, int kVectors>
struct Band {
  using Word = typename Step<E>::Word;
  static constexpr int64_t kOutputs = Vector::kLanes * kVectors, kInputs = Vector::kSums / kVectors;

  int64_t kernel, rows, x_rows, steps, x_steps, shifts, input_tiles, output_tiles;
  int64_t x_tile, x_shift, z_tile, sums;  // in words

  template <class Geometry>
  explicit Band(const Geometry& g) : kernel(g.kernel) {
    // Some 256 pixels: more spend less on sums going in and out of registers, fewer stay in the nearest cache.
    rows = std::min(g.height, std::max<int64_t>(1, 256 / g.width));
    x_rows = rows + kernel - 1;
    steps = (g.width + Step<E>::kPixels - 1) / Step<E>::kPixels;
    x_steps = steps + (kernel - 1) / Step<E>::kPixels;
    // A tap to the side moves by one pixel, a step by kPixels: each remainder has its own packed copy.
    shifts = kernel == 1 ? 1 : Step<E>::kPixels;
    input_tiles = (g.inputs + kInputs - 1) / kInputs;
    output_tiles = (g.outputs + kOutputs - 1) / kOutputs;
    x_tile = x_rows * x_steps * kInputs;
    x_shift = input_tiles * x_tile;
    z_tile = rows * steps * kOutputs;
    sums = kernel * kernel * input_tiles * output_tiles * kInputs * kOutputs;
  }
  int64_t SumsOf(int64_t tap, int64_t input_tile, int64_t output_tile) const {
    return ((tap * input_tiles + input_tile) * output_tiles + output_tile) * kInputs * kOutputs;
  }

  // Adds the band's pixels to the sums of all taps and tiles.
  void Accumulate(const Word* x, const Word* z, float* all_sums) const {
    for (int64_t output = 0; output < output_tiles; output++) {
      for (int64_t input = 0; input < input_tiles; input++) {
        for (int64_t tap = 0; tap < kernel * kernel; tap++) {
          int64_t down = tap / kernel, right = tap % kernel;
          const Word* moved = x + right % shifts * x_shift + input * x_tile +
                              (down * x_steps + right / Step<E>::kPixels) * kInputs;
          AccumulateTile(moved, z + output * z_tile, all_sums + SumsOf(tap, input, output));
        }
      }
    }
  }

  void AccumulateTile(const Word* x, const Word* z, float* tile_sums) const {
    Vector::Register sum[kInputs][kVectors];
#pragma GCC unroll 24
    for (int i = 0; i < kInputs; i++)
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; v++) sum[i][v] = Vector::Load(tile_sums + i * kOutputs + v * Vector::kLanes);
    for (int64_t row = 0; row < rows; row++, x += x_steps * kInputs) {
      const Word* pixel = x;
      for (int64_t step = 0; step < steps; step++, pixel += kInputs, z += kOutputs) {
        Vector::Register gradient[kVectors];
#pragma GCC unroll 3
        for (int v = 0; v < kVectors; v++) {
          gradient[v] = Vector::Load(reinterpret_cast<const float*>(z) + v * Vector::kLanes);
        }
#pragma GCC unroll 24
        for (int i = 0; i < kInputs; i++)
#pragma GCC unroll 3
          for (int v = 0; v < kVectors; v++) sum[i][v] = Step<E>::Add(sum[i][v], pixel + i, gradient[v]);
      }
    }
#pragma GCC unroll 24
    for (int i = 0; i < kInputs; i++)
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; v++) Vector::Store(tile_sums + i * kOutputs + v * Vector::kLanes, sum[i][v]);
  }
};

// One row of the gradient before the activation, and its sum over the pixels.
template <class E>
void ActivateRow(const E* y, const E* dy, E* dz, int64_t width, int64_t channels, float slope, float* dbias) {
  for (int64_t p = 0; p < width * channels; p += channels) {
#pragma omp simd
    for (int64_t c = 0; c < channels; c++) {
      float gradient = Load(dy[p + c]);
      if (slope != 1.0f) {
        gradient = Load(y[p + c]) > 0 ? gradient : gradient * slope;
        Store(dz[p + c], gradient);
      }
      dbias[c] += gradient;
    }
  }
}

template <class E, int kVectors, class Geometry>
void WeightsGradientOfTiles(const Geometry& g, const E* x, const E* y, const E* dy, E* dz, float* dweights,
                            float* dbias) {
  using Sizes = Band<E, kVectors>;
  using Word = typename Sizes::Word;
  Sizes band(g);
  int64_t threads = omp_get_max_threads(), bands = (g.height + band.rows - 1) / band.rows;
  int64_t pad = g.kernel / 2, x_words = band.shifts * band.x_shift, z_words = band.output_tiles * band.z_tile;
  Scratch sums(threads * band.sums * sizeof(float)), biases(threads * g.outputs * sizeof(float));
  float *all_sums = static_cast<float*>(sums.data()), *all_biases = static_cast<float*>(biases.data());
  std::memset(all_sums, 0, threads * band.sums * sizeof(float));
  std::memset(all_biases, 0, threads * g.outputs * sizeof(float));
  std::vector<E> zeros(std::max(g.inputs, g.outputs));

#pragma omp parallel num_threads(threads)
  {
    float* own_sums = all_sums + omp_get_thread_num() * band.sums;
    float* own_biases = all_biases + omp_get_thread_num() * g.outputs;
    // Zero, because the channels that fill the last tile are never written.
    Scratch packed((x_words + z_words) * sizeof(Word));
    Word *packed_x = static_cast<Word*>(packed.data()), *packed_z = packed_x + x_words;
    std::memset(packed_x, 0, (x_words + z_words) * sizeof(Word));
#pragma omp for schedule(static)
    for (int64_t i = 0; i < g.batch * bands; i++) {
      int64_t image = i / bands, top = i % bands * band.rows;
      for (int64_t r = 0; r < band.x_rows; r++) {
        int64_t row = top + r - pad;
        const E* from = row < 0 || row >= g.height ? nullptr : x + (image * g.height + row) * g.width * g.inputs;
        for (int64_t shift = 0; shift < band.shifts; shift++) {
          PackRow(from, zeros.data(), shift - pad, g.width, g.inputs, Sizes::kInputs, band.x_steps, band.x_tile,
                  packed_x + shift * band.x_shift + r * band.x_steps * Sizes::kInputs);
        }
      }
      for (int64_t r = 0; r < band.rows; r++) {
        int64_t offset = (image * g.height + top + r) * g.width * g.outputs;
        bool inside = top + r < g.height;
        if (inside) ActivateRow(y + offset, dy + offset, dz + offset, g.width, g.outputs, g.slope, own_biases);
        PackRow(inside ? dz + offset : nullptr, zeros.data(), 0, g.width, g.outputs, Sizes::kOutputs, band.steps,
                band.z_tile, packed_z + r * band.steps * Sizes::kOutputs);
      }
      band.Accumulate(packed_x, packed_z, own_sums);
    }

    // All threads' sums, into the order of the parameters.
#pragma omp for schedule(static)
    for (int64_t o = 0; o < g.outputs; o++) {
      dbias[o] = 0;
      for (int64_t t = 0; t < threads; t++) dbias[o] += all_biases[t * g.outputs + o];
      for (int64_t i = 0; i < g.inputs; i++) {
        for (int64_t tap = 0; tap < g.kernel * g.kernel; tap++) {
          const float* part = all_sums + band.SumsOf(tap, i / Sizes::kInputs, o / Sizes::kOutputs) +
                              i % Sizes::kInputs * Sizes::kOutputs + o % Sizes::kOutputs;
          float sum = 0;
          for (int64_t t = 0; t < threads; t++) sum += part[t * band.sums];
          dweights[(o * g.inputs + i) * g.kernel * g.kernel + tap] = sum;
        }
      }
    }
  }
}

// `dz` receives the gradient before the activation of slope g.slope; without one it is `dy` itself.
template <class E, class Geometry>
void WeightsGradient(const Geometry& g, const E* x, const E* y, const E* dy, E* dz, float* dweights, float* dbias) {
  if (g.outputs > 2 * Vector::kLanes) {
    WeightsGradientOfTiles<E, Vector::kAcross>(g, x, y, dy, dz, dweights, dbias);
  } else if (g.outputs > Vector::kLanes) {
    WeightsGradientOfTiles<E, 2>(g, x, y, dy, dz, dweights, dbias);
  } else {
    WeightsGradientOfTiles<E, 1>(g, x, y, dy, dz, dweights, dbias);
  }
}

#endif
