// SPDX-License-Identifier: Apache-2.0
// Products for attention over keys and values that stay where they lie, rows any stride apart: keys
// are a left operand, read number by number; values a right one, read in vectors. See gemm.h.
#pragma once

#include <algorithm>

#include "gemm.h"

namespace tzgen {

// C (+)= A B: A(i, p) = a[p * lda + i], rows of B `ldb` apart, `last` columns in its last vector.
template <class T, int M, int V, bool whole>
static inline void gather_tile(int64_t depth, const T* a, int64_t lda, const T* b, int64_t ldb,
                               T* c, int64_t ldc, int64_t last) {
  typename Vec<T>::type sum[M][V];
#pragma GCC unroll 8
  for (int i = 0; i < M; i++)
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) sum[i][v] = load<T>(c + i * ldc + v * LANES<T>);
  for (int64_t p = 0; p < depth; p++) {
    typename Vec<T>::type right[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) {
      const T* from = b + p * ldb + v * LANES<T>;
      if (whole || v < V - 1) {
        right[v] = load<T>(from);
      } else {
        right[v] = splat<T>(0);
        std::memcpy(&right[v], from, size_t(last) * sizeof(T));
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < M; i++) {
      const T left = a[p * lda + i];
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) sum[i][v] += left * right[v];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < M; i++)
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) store<T>(c + i * ldc + v * LANES<T>, sum[i][v]);
}

template <class T, int M>
static inline void gather_columns(int64_t columns, int64_t depth, const T* a, int64_t lda,
                                  const T* b, int64_t ldb, T* c, int64_t ldc) {
  const int64_t last = columns > LANES<T> ? columns - LANES<T> : columns;
  if (columns > LANES<T>)
    last == LANES<T> ? gather_tile<T, M, 2, true>(depth, a, lda, b, ldb, c, ldc, last)
                     : gather_tile<T, M, 2, false>(depth, a, lda, b, ldb, c, ldc, last);
  else
    last == LANES<T> ? gather_tile<T, M, 1, true>(depth, a, lda, b, ldb, c, ldc, last)
                     : gather_tile<T, M, 1, false>(depth, a, lda, b, ldb, c, ldc, last);
}

// At most ROWS rows and `columns` <= PANEL columns of C.
template <class T>
static inline void gather(int rows, int64_t columns, int64_t depth, const T* a, int64_t lda,
                          const T* b, int64_t ldb, T* c, int64_t ldc) {
  switch (rows) {
    case 1: return gather_columns<T, 1>(columns, depth, a, lda, b, ldb, c, ldc);
    case 2: return gather_columns<T, 2>(columns, depth, a, lda, b, ldb, c, ldc);
    case 3: return gather_columns<T, 3>(columns, depth, a, lda, b, ldb, c, ldc);
    case 4: return gather_columns<T, 4>(columns, depth, a, lda, b, ldb, c, ldc);
#if defined(__AVX__)
    case 5: return gather_columns<T, 5>(columns, depth, a, lda, b, ldb, c, ldc);
    case 6: return gather_columns<T, 6>(columns, depth, a, lda, b, ldb, c, ldc);
#endif
#if defined(__AVX512F__)
    case 7: return gather_columns<T, 7>(columns, depth, a, lda, b, ldb, c, ldc);
    case 8: return gather_columns<T, 8>(columns, depth, a, lda, b, ldb, c, ldc);
#endif
  }
}

// Half vectors: 20 queries are 24 lanes, not 32, and cost as much a lane where halves run in pairs.
typedef float FloatHalf __attribute__((vector_size(VECTOR_BYTES / 2)));
typedef double DoubleHalf __attribute__((vector_size(VECTOR_BYTES / 2)));
template <class T>
struct Half;
template <>
struct Half<float> {
  typedef FloatHalf type;
};
template <>
struct Half<double> {
  typedef DoubleHalf type;
};
template <class T>
constexpr int HALF = LANES<T> / 2;

// C = A B on V half vectors of columns; B in a panel, C `ldc` apart.
template <class T, int M, int V>
static inline void half_tile(int64_t depth, const T* a, int64_t lda, const T* b, T* c,
                             int64_t ldc) {
  typedef typename Half<T>::type Lanes;
  Lanes sum[M][V] = {};
  for (int64_t p = 0; p < depth; p++) {
    Lanes right[V];
#pragma GCC unroll 3
    for (int v = 0; v < V; v++) std::memcpy(&right[v], b + p * PANEL<T> + v * HALF<T>, sizeof(Lanes));
#pragma GCC unroll 8
    for (int i = 0; i < M; i++) {
      const T left = a[i * lda + p];
#pragma GCC unroll 3
      for (int v = 0; v < V; v++) sum[i][v] += left * right[v];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < M; i++)
#pragma GCC unroll 3
    for (int v = 0; v < V; v++) std::memcpy(c + i * ldc + v * HALF<T>, &sum[i][v], sizeof(Lanes));
}

// Scores of `keys` keys and one panel of queries, [keys][width].
template <class T>
static inline void score(int64_t keys, int64_t width, int64_t d, const T* k, int64_t k_token,
                         const T* queries, T* out) {
  int64_t j = 0;
  if (width == 3 * HALF<T> || width == HALF<T>) {
    constexpr int M = ROWS > 4 ? ROWS : 2;  // sums of 3 half vectors fit the registers
    for (; j + M <= keys; j += M)
      if (width == HALF<T>)
        half_tile<T, M, 1>(d, k + j * k_token, k_token, queries, out + j * width, width);
      else
        half_tile<T, M, 3>(d, k + j * k_token, k_token, queries, out + j * width, width);
    for (; j < keys; j++)
      if (width == HALF<T>)
        half_tile<T, 1, 1>(d, k + j * k_token, k_token, queries, out + j * width, width);
      else
        half_tile<T, 1, 3>(d, k + j * k_token, k_token, queries, out + j * width, width);
    return;
  }
  for (; j < keys; j += ROWS)
    multiply<T, false>(int(std::min<int64_t>(ROWS, keys - j)), width, d, k + j * k_token, k_token,
                       queries, out + j * width, width, false);
}

}  // namespace tzgen
