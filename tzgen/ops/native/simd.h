// SPDX-License-Identifier: Apache-2.0
// The widest vectors of the compiling machine, as GCC vector extensions, and SiLU on them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace tzgen {

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
constexpr int ROWS = 8;  // of a register tile: 8 x 2 vectors of sums, of 32 registers
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32;
constexpr int ROWS = 6;  // 6 x 2 of 16
#else
constexpr int VECTOR_BYTES = 16;
constexpr int ROWS = 4;
#endif

typedef float FloatVector __attribute__((vector_size(VECTOR_BYTES)));
typedef double DoubleVector __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t IntVector __attribute__((vector_size(VECTOR_BYTES)));

template <class T>
struct Vec;
template <>
struct Vec<float> {
  typedef FloatVector type;
};
template <>
struct Vec<double> {
  typedef DoubleVector type;
};

template <class T>
constexpr int LANES = VECTOR_BYTES / int(sizeof(T));
template <class T>
constexpr int PANEL = 2 * LANES<T>;  // columns of a register tile

template <class T>
static inline typename Vec<T>::type load(const T* at) {
  typename Vec<T>::type out;
  std::memcpy(&out, at, sizeof(out));
  return out;
}

template <class T>
static inline void store(T* at, typename Vec<T>::type value) {
  std::memcpy(at, &value, sizeof(value));
}

template <class T>
static inline typename Vec<T>::type splat(T value) {
  return typename Vec<T>::type{} + value;
}

// e^x to about 1e-7, relative, for x in [-87, 88]; beyond, as at the border.
static inline FloatVector exponential(FloatVector x) {
  x = x < -87.f ? splat<float>(-87.f) : x;
  x = x > 88.f ? splat<float>(88.f) : x;
  const float round = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
  const FloatVector shifted = x * 1.44269504f + round;
  const FloatVector whole = shifted - round;
  const FloatVector r = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;
  FloatVector p = r * 1.9875691500e-4f + 1.3981999507e-3f;  // Cephes' minimax polynomial
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  IntVector bits, steps;
  std::memcpy(&bits, &p, sizeof(p));
  std::memcpy(&steps, &shifted, sizeof(shifted));
  bits += steps << 23;  // the low bits of `shifted` are the integer
  std::memcpy(&p, &bits, sizeof(p));
  return p;
}

static inline DoubleVector exponential(DoubleVector x) {
  for (int lane = 0; lane < LANES<double>; lane++) x[lane] = std::exp(x[lane]);
  return x;
}

// 1 / (1 + e^-x); NaN stays NaN.
template <class V>
static inline V sigmoid(V x) {
  return 1 / (1 + exponential(-x));
}

template <class T>
static inline T silu(T x) {
  return x / (1 + std::exp(-x));
}

// x <- silu(x) on whole vectors that hold [0, count); readable and writable up to there.
template <class T>
static inline void silu_inplace(T* x, int64_t count) {
  for (int64_t at = 0; at < count; at += LANES<T>) {
    const auto value = load<T>(x + at);
    store<T>(x + at, value * sigmoid(value));
  }
}

// x <- silu(x) and d <- d * silu'(x), on whole vectors that hold [0, count).
template <class T>
static inline void silu_backward_inplace(T* x, T* d, int64_t count) {
  for (int64_t at = 0; at < count; at += LANES<T>) {
    const auto value = load<T>(x + at);
    const auto s = sigmoid(value);
    const auto y = value * s;
    store<T>(x + at, y);
    store<T>(d + at, load<T>(d + at) * (s + y * (1 - s)));
  }
}

}  // namespace tzgen
