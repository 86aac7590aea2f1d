// The nearest matrix with singular values near one, as optimizers.py defines it, on all cores.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "memory.h"
#include "onednn.h"

// y[m][n] = scale * y + a[m][k] * b, where b is [k][n], or [n][k] if it is to be turned.
inline void MultiplyAdd(const float* a, const float* b, bool turned, int64_t m, int64_t n, int64_t k, float factor,
                        float scale, float* y) {
  onednn::Check(dnnl_sgemm('N', turned ? 'T' : 'N', m, n, k, factor, a, k, b, turned ? k : n, scale, y, n),
                "multiplying matrices");
}

// Replaces a matrix of at most as many rows as columns.
inline void Orthogonalize(float* x, int64_t rows, int64_t columns) {
  int64_t count = rows * columns;
  Scratch first(count * sizeof(float)), second(rows * rows * sizeof(float)), third(rows * rows * sizeof(float));
  float *y = static_cast<float*>(first.data()), *square = static_cast<float*>(second.data());
  float* mixed = static_cast<float*>(third.data());
  float length = std::sqrt(std::inner_product(x, x + count, x, 0.0)) + 1e-12;
  for (int64_t i = 0; i < count; i++) x[i] /= length;
  for (int step = 0; step < 5; step++) {
    MultiplyAdd(x, x, true, rows, rows, columns, 1.0f, 0.0f, square);
    std::memcpy(mixed, square, rows * rows * sizeof(float));
    MultiplyAdd(square, square, false, rows, rows, rows, 2.0315f, -4.7750f, mixed);
    std::memcpy(y, x, count * sizeof(float));
    MultiplyAdd(mixed, x, false, rows, columns, rows, 1.0f, 3.4445f, y);
    std::memcpy(x, y, count * sizeof(float));
  }
}
