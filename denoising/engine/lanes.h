// Sixteen float32 numbers that are computed with at once, and the functions of them that C++ does not have.
#pragma once

#include <cstdint>
#include <cstring>

namespace lanes {

constexpr int64_t kLanes = 16;
typedef float Lanes __attribute__((vector_size(kLanes * 4)));
typedef int32_t Whole __attribute__((vector_size(kLanes * 4)));

inline Lanes LoadLanes(const float* from) {
  Lanes lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}
inline void AddLanes(float* to, Lanes more) {
  more += LoadLanes(to);
  std::memcpy(to, &more, sizeof more);
}

inline Lanes Smaller(Lanes a, Lanes b) { return a < b ? a : b; }
inline Lanes Larger(Lanes a, Lanes b) { return a < b ? b : a; }

// To seven digits; what is below exp(-87) counts as that, which is still a number.
inline Lanes Exp(Lanes x) {
  const Lanes round = Lanes{} + 12582912.0f;  // 1.5 * 2^23
  x = Smaller(Larger(x, Lanes{} - 87.0f), Lanes{} + 80.0f);
  Lanes shifted = x * 1.44269504f + round, power = shifted - round;
  Lanes rest = x - power * 0.693359375f + power * 2.12194440e-4f;
  Lanes result = rest * 1.9875691500e-4f + 1.3981999507e-3f;
  result = result * rest + 8.3334519073e-3f;
  result = result * rest + 4.1665795894e-2f;
  result = result * rest + 1.6666665459e-1f;
  result = result * rest + 5.0000001201e-1f;
  result = result * rest * rest + rest + 1.0f;
  return (Lanes)((Whole)result + ((Whole)shifted << 23));
}

// Of positive numbers, to seven digits.
inline Lanes Log(Lanes x) {
  Whole bits = (Whole)x, power = (bits >> 23) - 126;
  Lanes rest = (Lanes)((bits & 0x007fffff) | 0x3f000000);  // 0.5 .. 1
  Whole low = rest < Lanes{} + 0.707106781f;                // -1 where it is, else 0
  power += low;
  rest = (low ? rest + rest : rest) - 1.0f;
  Lanes result = rest * 7.0376836292e-2f - 1.1514610310e-1f;
  result = result * rest + 1.1676998740e-1f;
  result = result * rest - 1.2420140846e-1f;
  result = result * rest + 1.4249322787e-1f;
  result = result * rest - 1.6668057665e-1f;
  result = result * rest + 2.0000714765e-1f;
  result = result * rest - 2.4999993993e-1f;
  result = result * rest + 3.3333331174e-1f;
  Lanes powers = __builtin_convertvector(power, Lanes), square = rest * rest;
  return rest + (result * rest * square - powers * 2.12194440e-4f - square * 0.5f) + powers * 0.693359375f;
}

}  // namespace lanes
