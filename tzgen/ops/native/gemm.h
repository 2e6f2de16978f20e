// SPDX-License-Identifier: Apache-2.0
// C (+)= A B with B packed in panels of PANEL columns, [k][PANEL]: one register tile at a time.
//
// Own, because the sums must have one order: what a user gets may not depend, not by one bit, on
// where the rows of the batch lie in memory. A BLAS promises that for aligned data at best.
#pragma once

#include "simd.h"

namespace tzgen {

// M rows and V vectors of C. A(i, p) = a[i * lda + p], or a[p * lda + i] where `transposed`.
template <class T, int M, int V, bool transposed>
static inline void tile(int64_t depth, const T* a, int64_t lda, const T* b, T* c, int64_t ldc,
                        bool add) {
  typename Vec<T>::type sum[M][V];
#pragma GCC unroll 8
  for (int i = 0; i < M; i++)
#pragma GCC unroll 2
    for (int v = 0; v < V; v++)
      sum[i][v] = add ? load<T>(c + i * ldc + v * LANES<T>) : splat<T>(0);
  for (int64_t p = 0; p < depth; p++) {
    typename Vec<T>::type right[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) right[v] = load<T>(b + p * PANEL<T> + v * LANES<T>);
#pragma GCC unroll 8
    for (int i = 0; i < M; i++) {
      const T left = transposed ? a[p * lda + i] : a[i * lda + p];
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) sum[i][v] += left * right[v];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < M; i++)
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) store<T>(c + i * ldc + v * LANES<T>, sum[i][v]);
}

template <class T, int V, bool transposed>
static inline void rows_tile(int rows, int64_t depth, const T* a, int64_t lda, const T* b, T* c,
                             int64_t ldc, bool add) {
  switch (rows) {
    case 1: return tile<T, 1, V, transposed>(depth, a, lda, b, c, ldc, add);
    case 2: return tile<T, 2, V, transposed>(depth, a, lda, b, c, ldc, add);
    case 3: return tile<T, 3, V, transposed>(depth, a, lda, b, c, ldc, add);
    case 4: return tile<T, 4, V, transposed>(depth, a, lda, b, c, ldc, add);
#if defined(__AVX__)
    case 5: return tile<T, 5, V, transposed>(depth, a, lda, b, c, ldc, add);
    case 6: return tile<T, 6, V, transposed>(depth, a, lda, b, c, ldc, add);
#endif
#if defined(__AVX512F__)
    case 7: return tile<T, 7, V, transposed>(depth, a, lda, b, c, ldc, add);
    case 8: return tile<T, 8, V, transposed>(depth, a, lda, b, c, ldc, add);
#endif
  }
}

// At most ROWS rows and `columns` <= PANEL columns of C; writes whole vectors.
template <class T, bool transposed>
static inline void multiply(int rows, int64_t columns, int64_t depth, const T* a, int64_t lda,
                            const T* b, T* c, int64_t ldc, bool add) {
  if (columns > LANES<T>)
    rows_tile<T, 2, transposed>(rows, depth, a, lda, b, c, ldc, add);
  else
    rows_tile<T, 1, transposed>(rows, depth, a, lda, b, c, ldc, add);
}

}  // namespace tzgen
