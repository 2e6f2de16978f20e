// SPDX-License-Identifier: Apache-2.0
// Norm, gate and dropout of a STU layer's output, and dropout alone: float32, one pass a row.
// The formulae are in tzgen/ops/stu_linear/gate.py.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <vector>

#include "keep.h"

namespace tzgen {
namespace {

constexpr int64_t BLOCK = 32;  // rows of a task; also of a partial sum, so that threads change no bit

struct Gate {
  int64_t width, groups;
  bool concat, activate;
  double eps;
  float ratio;
  Keep keep;
  int64_t first_row;

  int64_t columns() const { return width * (concat ? 3 : 1); }
  int64_t last() const { return concat ? 2 * width : 0; }  // where s * n stands in a row of y
};

// Rows of a [R, columns] tensor whose rows need not lie side by side.
struct Rows {
  float* data;
  int64_t stride;

  explicit Rows(const at::Tensor& x)
      : data(const_cast<float*>(x.const_data_ptr<float>())), stride(x.stride(0)) {
    TORCH_CHECK(x.scalar_type() == at::kFloat, "stu_gate computes float32");
    TORCH_CHECK(x.dim() == 2 && (x.numel() == 0 || x.size(1) == 1 || x.stride(1) == 1),
                "stu_gate wants [R, W] with adjacent columns");
  }
  float* row(int64_t r) const { return data + r * stride; }
};

// y of the columns [c, c + lanes) from s, O and n.
inline void write_y(const Gate& g, uint32_t key, float* y, int64_t c, int64_t count, FloatVector s,
                    FloatVector o, FloatVector n) {
  const bool drops = g.ratio > 0;
  const auto put = [&](int64_t base, FloatVector value) {
    if (drops) value *= g.keep.factors(key, base + c);
    store_some(y + base + c, value, count);
  };
  if (g.concat) {
    put(0, s);
    put(g.width, o);
  }
  put(g.last(), s * n);
}

inline void moments(const float* x, int64_t low, int64_t high, double eps, float* mean,
                    float* rstd) {
  const float count = float(high - low);
  FloatVector sum{};
  for (int64_t c = low; c < high; c += WORDS) sum += load_some(x + c, high - c);
  *mean = total(sum) / count;
  FloatVector squares{};
  int64_t c = low;
  for (; c + WORDS <= high; c += WORDS) {
    const auto d = load<float>(x + c) - *mean;
    squares += d * d;
  }
  float rest = total(squares);
  for (; c < high; c++) rest += (x[c] - *mean) * (x[c] - *mean);
  *rstd = 1.f / std::sqrt(rest / count + float(eps));
}

void forward_row(const Gate& g, int64_t r, const float* o, const float* u, const float* weight,
                 const float* bias, float* y, float* mean, float* rstd) {
  const uint32_t key = g.keep.row_key(g.first_row + r);
  const int64_t step = g.width / g.groups;
  for (int64_t group = 0; group < g.groups; group++) {
    const int64_t low = group * step, high = low + step;
    moments(o, low, high, g.eps, mean + group, rstd + group);
    for (int64_t c = low; c < high; c += WORDS) {
      const int64_t count = high - c;
      const auto here = load_some(o + c, count);
      auto s = load_some(u + c, count);
      if (g.activate) s *= sigmoid(s);
      const auto n = (here - mean[group]) * rstd[group] * load_some(weight + c, count) +
                     load_some(bias + c, count);
      write_y(g, key, y, c, count, s, here, n);
    }
  }
}

// The pointers of one row of the backward pass; d_y is overwritten.
struct BackwardRow {
  const float *o, *u, *mean, *rstd;
  float *d_y, *d_o, *d_u, *y;
};

void backward_row(const Gate& g, int64_t r, const float* weight, const float* bias,
                  const BackwardRow& p, float* d_weight, float* d_bias, float* d_hat) {
  const uint32_t key = g.keep.row_key(g.first_row + r);
  const int64_t step = g.width / g.groups;
  const auto dropped = [&](int64_t column, int64_t count) {
    const auto value = load_some(p.d_y + column, count);
    return g.ratio > 0 ? value * g.keep.factors(key, column) : value;
  };
  for (int64_t group = 0; group < g.groups; group++) {
    const int64_t low = group * step, high = low + step;
    const float mean = p.mean[group], rstd = p.rstd[group];
    FloatVector plain{}, along{};
    for (int64_t c = low; c < high; c += WORDS) {
      const int64_t count = high - c;
      const auto o = load_some(p.o + c, count), u = load_some(p.u + c, count);
      const auto w = load_some(weight + c, count);
      const auto sig = g.activate ? sigmoid(u) : splat<float>(1.f);
      const auto s = u * sig, hat = (o - mean) * rstd;
      const auto n = hat * w + load_some(bias + c, count);
      const auto d_last = dropped(g.last() + c, count);
      auto d_s = d_last * n;
      if (g.concat) d_s += dropped(c, count);
      if (g.activate) d_s *= sig + s * (1 - sig);
      store_some(p.d_u + c, d_s, count);
      const auto d_n = d_last * s, d = d_n * w;
      store_some(d_weight + c, load_some(d_weight + c, count) + d_n * hat, count);
      store_some(d_bias + c, load_some(d_bias + c, count) + d_n, count);
      store_some(d_hat + c, d, count);
      plain += d;
      along += d * hat;  // beyond the row d is zero: d_last is
      if (p.y) write_y(g, key, p.y, c, count, s, o, n);
    }
    const float middle = total(plain) / float(step), slope = total(along) / float(step);
    for (int64_t c = low; c < high; c += WORDS) {
      const int64_t count = high - c;
      const auto hat = (load_some(p.o + c, count) - mean) * rstd;
      auto d = (load_some(d_hat + c, count) - middle - hat * slope) * rstd;
      if (g.concat) d += dropped(g.width + c, count);
      store_some(p.d_o + c, d, count);
    }
  }
}

Gate gate_of(const at::Tensor& attended, bool concat, bool activate, int64_t groups, double eps,
             double ratio, int64_t seed, int64_t first_row) {
  const int64_t width = attended.size(1);
  TORCH_CHECK(groups > 0 && width % groups == 0, "groups must divide the width");
  return {width, groups, concat, activate, eps, float(ratio), Keep(seed, ratio), first_row};
}

void forward(const at::Tensor& attended, const at::Tensor& u, const at::Tensor& weight,
             const at::Tensor& bias, const at::Tensor& out, const at::Tensor& mean,
             const at::Tensor& rstd, bool concat, bool activate, int64_t groups, double eps,
             double ratio, int64_t seed, int64_t first_row) {
  const Gate g = gate_of(attended, concat, activate, groups, eps, ratio, seed, first_row);
  const Rows o(attended), u_(u), y(out), mean_(mean), rstd_(rstd);
  const float *w = weight.const_data_ptr<float>(), *b = bias.const_data_ptr<float>();
  at::parallel_for(0, attended.size(0), BLOCK, [&](int64_t start, int64_t stop) {
    for (int64_t r = start; r < stop; r++)
      forward_row(g, r, o.row(r), u_.row(r), w, b, y.row(r), mean_.row(r), rstd_.row(r));
  });
}

void backward(const at::Tensor& grad, const at::Tensor& attended, const at::Tensor& u,
              const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& mean,
              const at::Tensor& rstd, const at::Tensor& d_attended, const at::Tensor& d_u,
              const at::Tensor& d_weight, const at::Tensor& d_bias,
              const std::optional<at::Tensor>& y, bool concat, bool activate, int64_t groups,
              double eps, double ratio, int64_t seed, int64_t first_row) {
  const Gate g = gate_of(attended, concat, activate, groups, eps, ratio, seed, first_row);
  const Rows o(attended), u_(u), mean_(mean), rstd_(rstd), d_y(grad), d_o(d_attended), d_u_(d_u);
  const Rows y_(y ? *y : grad);
  const float *w = weight.const_data_ptr<float>(), *b = bias.const_data_ptr<float>();
  const int64_t rows = attended.size(0), blocks = (rows + BLOCK - 1) / BLOCK, width = g.width;
  std::vector<float> partial(size_t(blocks * 2 * width), 0.f);
  at::parallel_for(0, blocks, 1, [&](int64_t start, int64_t stop) {
    std::vector<float> d_hat(size_t(width + WORDS));
    for (int64_t block = start; block < stop; block++) {
      float* sums = partial.data() + block * 2 * width;
      for (int64_t r = block * BLOCK; r < std::min(rows, (block + 1) * BLOCK); r++) {
        const BackwardRow row{o.row(r),   u_.row(r),   mean_.row(r), rstd_.row(r),
                              d_y.row(r), d_o.row(r),  d_u_.row(r),  y ? y_.row(r) : nullptr};
        backward_row(g, r, w, b, row, sums, sums + width, d_hat.data());
      }
    }
  });
  float *to_weight = d_weight.mutable_data_ptr<float>(), *to_bias = d_bias.mutable_data_ptr<float>();
  for (int64_t block = 0; block < blocks; block++) {
    const float* sums = partial.data() + block * 2 * width;
    for (int64_t c = 0; c < width; c++) {
      to_weight[c] += sums[c];
      to_bias[c] += sums[width + c];
    }
  }
}

at::Tensor dropout(const at::Tensor& x, int64_t seed, double ratio) {
  const Rows from(x);
  at::Tensor out = at::empty(x.sizes(), x.options());
  const Rows to(out);
  const Keep keep(seed, ratio);
  const int64_t columns = x.size(1);
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(columns, 1));
  at::parallel_for(0, x.size(0), grain, [&](int64_t start, int64_t stop) {
    for (int64_t r = start; r < stop; r++) {
      const uint32_t key = keep.row_key(r);
      const float* in = from.row(r);
      float* dest = to.row(r);
      for (int64_t c = 0; c < columns; c += WORDS)
        store_some(dest + c, load_some(in + c, columns - c) * keep.factors(key, c), columns - c);
    }
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(tzgen_native, m) {
  m.def(
      "stu_gate(Tensor attended, Tensor u, Tensor weight, Tensor bias, Tensor(a!) out, "
      "Tensor(b!) mean, Tensor(c!) rstd, bool concat, bool activate, int groups, float eps, "
      "float ratio, int seed, int first_row) -> ()",
      &forward);
  m.def(
      "stu_gate_backward(Tensor grad, Tensor attended, Tensor u, Tensor weight, Tensor bias, "
      "Tensor mean, Tensor rstd, Tensor(a!) d_attended, Tensor(b!) d_u, Tensor(c!) d_weight, "
      "Tensor(d!) d_bias, Tensor(e!)? y, bool concat, bool activate, int groups, float eps, "
      "float ratio, int seed, int first_row) -> ()",
      &backward);
  m.def("dropout(Tensor x, int seed, float ratio) -> Tensor", &dropout);
}

}  // namespace tzgen
