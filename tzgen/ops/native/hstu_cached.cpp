// SPDX-License-Identifier: Apache-2.0
// The op of hstu_cached.h: cached STU attention by itself.
#include <ATen/ops/empty.h>

#include "hstu_cached.h"

namespace tzgen {
namespace {

using namespace cached;

template <class T>
static void forward_in(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                       const at::Tensor& offsets, const Cache& cache,
                       const std::optional<at::Tensor>& targets,
                       const std::optional<at::Tensor>& times, const Bias<T>& bias, double alpha,
                       double divisor, const Mask& mask, const at::Tensor& out) {
  const auto rows = rows_of<T>(Tokens<T>(k), Tokens<T>(v), offsets, cache, targets, times);
  const Forward<T> work{rows, mask, bias, Tokens<T>(q), Tokens<T>(k), Tokens<T>(v), Sink(out),
                        T(alpha), T(divisor), q.size(2), v.size(2), up(v.size(2), PANEL<T>)};
  run_tasks<Scratch<T>>(cut(rows, q.size(1)), work);
}

at::Tensor forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                   const at::Tensor& offsets, const at::Tensor& cache_k, const at::Tensor& cache_v,
                   const at::Tensor& lengths, const std::optional<at::Tensor>& table,
                   const std::optional<at::Tensor>& cache_times,
                   const std::optional<at::Tensor>& targets,
                   const std::optional<at::Tensor>& times,
                   const std::optional<at::Tensor>& position,
                   const std::optional<at::Tensor>& time, const std::optional<at::Tensor>& steps,
                   const std::optional<at::Tensor>& cells, double alpha, double divisor,
                   at::IntArrayRef fields) {
  for (const at::Tensor* x : {&q, &k, &v, &cache_k, &cache_v})
    TORCH_CHECK_VALUE(x->size(-1) <= 1 || x->stride(-1) == 1,
                      "the numbers of one head must lie side by side");
  const Cache cache{cache_k, cache_v, lengths, table, cache_times};
  const Mask mask = mask_of(fields);
  at::Tensor out = at::empty(v.sizes(), v.options());
  if (q.scalar_type() == at::kDouble)
    forward_in<double>(q, k, v, offsets, cache, targets, times,
                       bias_of<double>(position, time, steps, cells), alpha, divisor, mask, out);
  else
    forward_in<float>(q, k, v, offsets, cache, targets, times,
                      bias_of<float>(position, time, steps, cells), alpha, divisor, mask, out);
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(tzgen_native, m) {
  m.def(
      "hstu_attention_cached(Tensor q, Tensor k, Tensor v, Tensor offsets, Tensor cache_k, "
      "Tensor cache_v, Tensor cache_lengths, Tensor? cache_table, Tensor? cache_timestamps, "
      "Tensor? num_targets, Tensor? timestamps, Tensor? position, Tensor? time, Tensor? steps, "
      "Tensor? cells, float alpha, float divisor, int[] mask) -> Tensor",
      &forward);
}

}  // namespace tzgen
