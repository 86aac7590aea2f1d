// Averages of neighbours that are weighed by how alike they are, and their gradients: what `weigh` of arch_unet.py
// says, for one image of planes [channel, height, width] in float32.
//
// Sixteen pixels of a row are computed at once. The weights, of which there are hundreds for each pixel, never leave
// the processor: the gradients' pass makes them again.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "lanes.h"

namespace neighbours {

using namespace lanes;

constexpr float kOutside = -1e4f;  // the logarithm of the weight of what is not in the image

struct Sizes {
  int64_t lights, guides, height, width, radius, dilation;
  std::vector<int> groups;  // how many of the guides, and at last the distance, share each channel of the precision

  int64_t Pixels() const { return height * width; }
  int64_t Reach() const { return radius * dilation; }
  int64_t Taps() const { return (2 * radius + 1) * (2 * radius + 1); }
  // Of a plane with room for all neighbours around it.
  int64_t Stride() const { return width + 2 * Reach() + kLanes; }
  int64_t Plane() const { return (height + 2 * Reach()) * Stride() + kLanes; }
  int64_t Place(int64_t row, int64_t column) const { return (row + Reach()) * Stride() + column + Reach(); }

  void Widen(const float* from, float* to, int64_t planes, float outside) const {
    std::fill(to, to + planes * Plane(), outside);
    for (int64_t c = 0; c < planes; c++)
      for (int64_t row = 0; row < height; row++)
        std::memcpy(to + c * Plane() + Place(row, 0), from + c * Pixels() + row * width, width * sizeof(float));
  }
  void Narrow(const float* from, float* to, int64_t planes) const {
    for (int64_t c = 0; c < planes; c++)
      for (int64_t row = 0; row < height; row++)
        std::memcpy(to + c * Pixels() + row * width, from + c * Plane() + Place(row, 0), width * sizeof(float));
  }
};

// One image's light, guide and trust with room around them, and sixteen pixels in their midst.
class Average {
 public:
  // `memory` has room for `Planes` planes.
  static int64_t Planes(const Sizes& sizes) { return sizes.lights + sizes.guides + 1; }
  Average(const Sizes& sizes, const float* light, const float* guide, const float* trust, float* memory)
      : sizes_(sizes),
        light_(memory),
        guide_(memory + sizes.lights * sizes.Plane()),
        trust_(memory + (sizes.lights + sizes.guides) * sizes.Plane()) {
    sizes.Widen(light, light_, sizes.lights, 0.0f);
    sizes.Widen(guide, guide_, sizes.guides, 0.0f);
    sizes.Widen(trust, trust_, 1, kOutside);
  }

  // The averages of the pixels from (row, column) on, by what `precision` says of them, [guides + 1]; where `weights`
  // is given, [taps], they are kept. Returns the sum of the weights.
  Lanes Of(int64_t row, int64_t column, const Lanes* precision, Lanes* result, Lanes* weights = nullptr) const {
    const int64_t here = sizes_.Place(row, column), plane = sizes_.Plane();
    Lanes total = {};
    for (int64_t c = 0; c < sizes_.lights; c++) result[c] = Lanes{};
    ForEachTap([&](int64_t tap, int64_t there, float distance) {
      there += here;
      Lanes unlike = precision[sizes_.guides] * distance;
      for (int64_t k = 0; k < sizes_.guides; k++) {
        Lanes difference = LoadLanes(guide_ + k * plane + here) - LoadLanes(guide_ + k * plane + there);
        unlike += precision[k] * difference * difference;
      }
      Lanes weight = Exp(LoadLanes(trust_ + there) - unlike * 0.5f);
      if (weights != nullptr) weights[tap] = weight;
      total += weight;
      for (int64_t c = 0; c < sizes_.lights; c++) result[c] += weight * LoadLanes(light_ + c * plane + there);
    });
    for (int64_t c = 0; c < sizes_.lights; c++) result[c] /= total;
    return total;
  }

  // Adds to the gradients of light, guide and trust, which have room around them as these have and lie as one, and sets
  // that of the precision. `dresult` is the gradient of what `Of` returned with these weights.
  void Backward(int64_t row, int64_t column, const Lanes* precision, const Lanes* result, const Lanes* weights,
                Lanes total, const Lanes* dresult, float* gradients, Lanes* dprecision, Lanes* dhere) const {
    const int64_t here = sizes_.Place(row, column), plane = sizes_.Plane();
    float *dlight = gradients, *dguide = dlight + sizes_.lights * plane, *dtrust = dguide + sizes_.guides * plane;
    for (int64_t k = 0; k <= sizes_.guides; k++) dprecision[k] = dhere[k] = Lanes{};
    ForEachTap([&](int64_t tap, int64_t there, float distance) {
      there += here;
      Lanes share = weights[tap] / total, change = {};
      for (int64_t c = 0; c < sizes_.lights; c++) {
        change += dresult[c] * (LoadLanes(light_ + c * plane + there) - result[c]);
        AddLanes(dlight + c * plane + there, share * dresult[c]);
      }
      change *= share;  // the gradient of the weight's logarithm
      AddLanes(dtrust + there, change);
      dprecision[sizes_.guides] -= change * (0.5f * distance);
      for (int64_t k = 0; k < sizes_.guides; k++) {
        Lanes difference = LoadLanes(guide_ + k * plane + here) - LoadLanes(guide_ + k * plane + there);
        Lanes moved = change * difference;
        dprecision[k] -= moved * difference * 0.5f;
        moved *= precision[k];
        dhere[k] -= moved;
        AddLanes(dguide + k * plane + there, moved);
      }
    });
    for (int64_t k = 0; k < sizes_.guides; k++) AddLanes(dguide + k * plane + here, dhere[k]);
  }

 private:
  // Calls function(number, offset in a plane, squared distance in steps) for each neighbour.
  template <class Function>
  void ForEachTap(Function function) const {
    int64_t tap = 0;
    for (int64_t down = -sizes_.radius; down <= sizes_.radius; down++)
      for (int64_t right = -sizes_.radius; right <= sizes_.radius; right++)
        function(tap++, (down * sizes_.Stride() + right) * sizes_.dilation, float(down * down + right * right));
  }

  Sizes sizes_;
  float *light_, *guide_, *trust_;
};

// Up to sixteen pixels of a row from planes to lanes, and back; the lanes beyond the row's end are zero.
inline void Gather(const float* from, int64_t planes, int64_t plane, int64_t count, Lanes* lanes) {
  for (int64_t c = 0; c < planes; c++) {
    lanes[c] = Lanes{};
    std::memcpy(&lanes[c], from + c * plane, count * sizeof(float));
  }
}
inline void Scatter(const Lanes* lanes, int64_t planes, int64_t plane, int64_t count, float* to) {
  for (int64_t c = 0; c < planes; c++) std::memcpy(to + c * plane, &lanes[c], count * sizeof(float));
}

// The precision of each guide, and of the distance, from those of their groups; and the sums over groups.
inline void Spread(const Sizes& sizes, const Lanes* grouped, Lanes* each) {
  for (int count : sizes.groups) {
    each = std::fill_n(each, count, *grouped++);
  }
}
inline void Sum(const Sizes& sizes, const Lanes* each, Lanes* grouped) {
  for (int count : sizes.groups) {
    *grouped = Lanes{};
    for (int k = 0; k < count; k++) *grouped += *each++;
    grouped++;
  }
}

// The averages of one row.
inline void Forward(const Sizes& sizes, const Average& average, const float* precision, int64_t row, float* result) {
  const int64_t groups = sizes.groups.size();
  std::vector<Lanes> grouped(groups), precisions(sizes.guides + 1), averages(sizes.lights);
  for (int64_t column = 0; column < sizes.width; column += kLanes) {
    int64_t count = std::min(kLanes, sizes.width - column), pixel = row * sizes.width + column;
    Gather(precision + pixel, groups, sizes.Pixels(), count, grouped.data());
    Spread(sizes, grouped.data(), precisions.data());
    average.Of(row, column, precisions.data(), averages.data());
    Scatter(averages.data(), sizes.lights, sizes.Pixels(), count, result + pixel);
  }
}

// All gradients of one image. `gradients` has room for as many planes as `Average` has.
inline void Backward(const Sizes& sizes, const Average& average, const float* precision, const float* dresult,
                     float* gradients, float* dprecision) {
  const int64_t guides = sizes.guides + 1, groups = sizes.groups.size();
  std::fill(gradients, gradients + Average::Planes(sizes) * sizes.Plane(), 0.0f);
  std::vector<Lanes> grouped(groups), precisions(guides), averages(sizes.lights), wanted(sizes.lights), weights(sizes.Taps());
  std::vector<Lanes> dprecisions(guides), dhere(guides);
  for (int64_t row = 0; row < sizes.height; row++) {
    for (int64_t column = 0; column < sizes.width; column += kLanes) {
      int64_t count = std::min(kLanes, sizes.width - column), pixel = row * sizes.width + column;
      Gather(precision + pixel, groups, sizes.Pixels(), count, grouped.data());
      Spread(sizes, grouped.data(), precisions.data());
      Gather(dresult + pixel, sizes.lights, sizes.Pixels(), count, wanted.data());
      Lanes total = average.Of(row, column, precisions.data(), averages.data(), weights.data());
      average.Backward(row, column, precisions.data(), averages.data(), weights.data(), total, wanted.data(),
                       gradients, dprecisions.data(), dhere.data());
      Sum(sizes, dprecisions.data(), grouped.data());
      Scatter(grouped.data(), groups, sizes.Pixels(), count, dprecision + pixel);
    }
  }
}

}  // namespace neighbours
