// How a render looks without its fireflies, and how far each pixel is to be trusted: what `calm` of arch_unet.py says,
// for one image of planes [channel, height, width] in float32.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "lanes.h"

namespace fireflies {

using namespace lanes;

constexpr int64_t kChannels = 3, kReach = 6;
constexpr float kDeviation = 1.5f;

// By comparing pairs (the network of Devillard, 1998).
inline Lanes Median9(Lanes* values) {
  constexpr int kPairs[][2] = {{1, 2}, {4, 5}, {7, 8}, {0, 1}, {3, 4}, {6, 7}, {1, 2}, {4, 5}, {7, 8}, {0, 3},
                               {5, 8}, {4, 7}, {3, 6}, {1, 4}, {2, 5}, {4, 7}, {4, 2}, {6, 4}, {4, 2}};
  for (auto [low, high] : kPairs) {
    Lanes smaller = Smaller(values[low], values[high]);
    values[high] = Larger(values[low], values[high]);
    values[low] = smaller;
  }
  return values[4];
}

inline Lanes ToneMap(Lanes light) { return Exp(Log(Larger(light / (light + 1.0f), Lanes{} + 1e-8f)) / 2.2f); }

struct Sizes {
  int64_t height, width;

  int64_t Pixels() const { return height * width; }
  int64_t Stride() const { return width + 2 * kReach + kLanes; }
  // Of a plane with room around it, for the neighbours of a pixel and the lanes beyond a row's end.
  int64_t Plane() const { return (height + 2 * kReach) * Stride() + kLanes; }
  int64_t Place(int64_t row, int64_t column) const { return (row + kReach) * Stride() + column + kReach; }
};

// A row with what is one pixel around it; beyond the image's border its last pixels are repeated.
inline void Widen(const Sizes& sizes, const float* light, float* wide, int64_t row) {
  for (int64_t c = 0; c < kChannels; c++) {
    const float* from = light + c * sizes.Pixels() + std::clamp<int64_t>(row, 0, sizes.height - 1) * sizes.width;
    float* to = wide + c * sizes.Plane() + sizes.Place(row, 0);
    std::memcpy(to, from, sizes.width * sizeof(float));
    to[-1] = from[0];
    std::fill(to + sizes.width, to + sizes.width + kLanes, from[sizes.width - 1]);
  }
}

// The tone-mapped light of a row that is at most ten times the median around it, and the logarithm of the share that
// this leaves to the channel that loses most.
inline void Hold(const Sizes& sizes, const float* wide, float* shown, float* trust, int64_t row) {
  for (int64_t column = 0; column < sizes.width; column += kLanes) {
    Lanes least = Lanes{} + 1.0f;
    int64_t here = sizes.Place(row, column), count = std::min(kLanes, sizes.width - column);
    for (int64_t c = 0; c < kChannels; c++) {
      Lanes around[9];
      for (int64_t i = 0; i < 9; i++)
        around[i] = LoadLanes(wide + c * sizes.Plane() + here + (i / 3 - 1) * sizes.Stride() + i % 3 - 1);
      Lanes light = around[4], held = Smaller(light, Median9(around) * 10.0f + 0.05f), tone = ToneMap(held);
      least = Smaller(least, (held + 1e-6f) / (light + 1e-6f));
      std::memcpy(shown + c * sizes.Plane() + here, &tone, count * sizeof(float));
    }
    least = Log(least);
    std::memcpy(trust + row * sizes.width + column, &least, count * sizeof(float));
  }
}

// The Gaussian mean along rows (`step` 1) or columns (the stride) of what is in the image.
inline void Blur(const Sizes& sizes, const float* from, float* to, int64_t row, int64_t step) {
  for (int64_t column = 0; column < sizes.width; column++) {
    int64_t place = step == 1 ? column : row, end = step == 1 ? sizes.width : sizes.height;
    int64_t first = std::max(-kReach, -place), last = std::min(kReach, end - 1 - place);
    // Away from the border all pixels of a row have the same neighbours: as many as there are, at once.
    int64_t alike = 1;
    if (step != 1) alike = sizes.width;
    else if (first == -kReach && last == kReach) alike = end - kReach - column;
    float total = 0.0f, weights[2 * kReach + 1];
    for (int64_t k = first; k <= last; k++) total += weights[k + kReach] = std::exp(-0.5f * k * k / (kDeviation * kDeviation));
    const float* centre = from + sizes.Place(row, column);
    float* result = to + sizes.Place(row, column);
    std::fill(result, result + alike, 0.0f);
    for (int64_t k = first; k <= last; k++) {
      const float weight = weights[k + kReach] / total, *there = centre + k * step;
      for (int64_t i = 0; i < alike; i++) result[i] += weight * there[i];
    }
    column += alike - 1;
  }
}

}  // namespace fireflies
