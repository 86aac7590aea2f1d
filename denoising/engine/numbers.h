// The engine's two element types. All arithmetic is in float32.
#pragma once

#include <cstdint>
#include <cstring>

struct bf16 {
  uint16_t bits;
};

inline float Load(float value) { return value; }
inline float Load(bf16 value) {
  uint32_t bits = uint32_t{value.bits} << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}
inline void Store(float& to, float value) { to = value; }
inline void Store(bf16& to, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  // To the nearest, ties to even; a NaN stays one.
  to.bits = value != value ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}
