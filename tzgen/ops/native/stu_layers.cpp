// SPDX-License-Identifier: Apache-2.0
// STU layers of few new tokens behind a cache, in one call and one parallel region: of each layer
// norm and projection, attention, gate and output. See tzgen/ops/stu_cached/__init__.py.
#include <ATen/core/List.h>
#include <ATen/ops/empty.h>

#include <deque>
#include <string_view>

#include "phases.h"
#include "stu_parts.h"

namespace tzgen {
namespace {

using namespace parts;

constexpr double THREAD_FLOPS = 4e6;  // that a thread is woken for

enum Parameter { NORM_WEIGHT, NORM_BIAS, WEIGHT, BIAS, OUT_NORM_WEIGHT, OUT_NORM_BIAS, OUT_WEIGHT };
constexpr int64_t PARAMETERS = OUT_WEIGHT + 1;  // of a layer

// What all layers have in common.
struct Shape {
  int64_t heads, attention_dim, hidden_dim, groups;
  std::string_view activated;
  bool concat;
  double eps, alpha, divisor;
  Mask mask;

  int64_t wide() const { return heads * hidden_dim; }
  int64_t narrow() const { return heads * attention_dim; }
  int64_t gated() const { return wide() * (concat ? 3 : 1); }
};

struct Rows {
  const at::Tensor &offsets, &lengths;
  const std::optional<at::Tensor>&table, &cache_times, &targets, &times;
};

// The lists have one entry a layer; position and time may be empty.
struct Layers {
  at::TensorList parameters, cache_k, cache_v, position, time;
  const std::optional<at::Tensor>&steps, &cells;

  int64_t count() const { return int64_t(cache_k.size()); }
  const at::Tensor& of(int64_t layer, Parameter which) const {
    return parameters[layer * PARAMETERS + which];
  }
};

void check_layer(const at::Tensor& x, const Shape& s, const Layers& layers, int64_t layer) {
  const int64_t rows = 2 * (s.wide() + s.narrow()), dim = x.size(1);
  const auto is = [&](Parameter which, int64_t size) {
    return layers.of(layer, which).numel() == size;
  };
  const auto weight = layers.of(layer, WEIGHT).sizes(), out = layers.of(layer, OUT_WEIGHT).sizes();
  const int64_t normed = layers.of(layer, OUT_NORM_WEIGHT).numel();
  TORCH_CHECK_VALUE(
      weight.equals({rows, dim}) && out.equals({dim, s.gated()}) && is(BIAS, rows) &&
          is(NORM_WEIGHT, dim) && is(NORM_BIAS, dim) && is(OUT_NORM_BIAS, normed) &&
          (normed == s.wide() || normed == s.groups) && s.wide() % s.groups == 0,
      "a STU layer of ", s.heads, " heads of ", s.attention_dim, " and ", s.hidden_dim,
      " has other parameters than ", weight, " and ", out, " for x ", x.sizes());
  for (int64_t one = 0; one < PARAMETERS; one++) {
    const at::Tensor& parameter = layers.of(layer, Parameter(one));
    TORCH_CHECK_VALUE(parameter.is_contiguous() && parameter.scalar_type() == x.scalar_type(),
                      "a STU layer's parameters must be contiguous, in the dtype of x");
  }
}

void check_cache(const at::Tensor& x, const Shape& s, const at::Tensor& held, bool paged,
                 int64_t width) {
  TORCH_CHECK_VALUE(held.dim() == (paged ? 4 : 3) && held.size(-2) == s.heads &&
                        held.size(-1) == width,
                    "the cache must be ", paged ? "[P, page_size, H, dim]" : "[Lc, H, dim]",
                    " with the layer's ", s.heads, " heads of ", width, "; got ", held.sizes());
  TORCH_CHECK_VALUE(held.scalar_type() == x.scalar_type(), "the cache is ", held.scalar_type(),
                    ", the new tokens are ", x.scalar_type(),
                    ": write the cache in the dtype that the model computes in");
  TORCH_CHECK_VALUE(width <= 1 || held.stride(-1) == 1,
                    "the numbers of one head must lie side by side");
}

void check(const at::Tensor& x, const Shape& s, const Rows& r, const Layers& layers) {
  TORCH_CHECK_VALUE(x.dim() == 2 && x.is_contiguous(), "x must be [L, D]; got ", x.sizes());
  TORCH_CHECK_VALUE(s.divisor > 0, "divisor must be positive; got ", s.divisor);
  const int64_t rows = r.lengths.numel(), count = layers.count();
  TORCH_CHECK_VALUE(count > 0 && int64_t(layers.parameters.size()) == count * PARAMETERS &&
                        int64_t(layers.cache_v.size()) == count,
                    "a cache, and ", PARAMETERS, " parameters, belong to each of ", count, " layers");
  TORCH_CHECK_VALUE(r.offsets.numel() == rows + 1 && (!r.table || r.table->size(0) == rows) &&
                        (!r.targets || r.targets->numel() == rows),
                    "offsets, targets and the cache's table must have the ", rows,
                    " rows of its lengths");
  TORCH_CHECK_VALUE(!r.times || r.times->numel() == x.size(0), "timestamps are one a new token");
  for (int64_t layer = 0; layer < count; layer++) {
    check_layer(x, s, layers, layer);
    check_cache(x, s, layers.cache_k[layer], r.table.has_value(), s.attention_dim);
    check_cache(x, s, layers.cache_v[layer], r.table.has_value(), s.hidden_dim);
  }
}

// Scratch of the calling thread that all layers share: one is through with it before the next.
template <class T>
struct Workspace {
  Buffer<T> normed, gated, u, q, k, v, attended;
};

// Everything of one layer; the operands point at each other, so that it stays where it is made.
template <class T>
struct Layer {
  Input<T> input;
  std::vector<cached::Row<T>> rows;
  Bias<T> bias;
  std::optional<cached::Forward<T>> attention;  // these three are not there for keys and values
  std::vector<Task> tasks;
  std::optional<Output<T>> output;

  void run(int64_t phase, int64_t index) const {
    thread_local Scratch<T> scratch;
    thread_local cached::Scratch<T> attention_scratch;
    switch (phase) {
      case 0: return input.norm(index, scratch);
      case 1: return input.project(index, scratch);
      case 2: return (*attention)(tasks[index], index, attention_scratch);
      case 3: return output->gate(index, scratch);
      default: return output->project(index, scratch);
    }
  }
};

constexpr int64_t PHASES = 5;  // of a layer

template <class T>
class Stack {
 public:
  Stack(const at::Tensor& x, const Shape& s, const Rows& r, const Layers& layers)
      : tokens_(x.size(0)), dim_(x.size(1)), s_(s), r_(r), layers_(layers) {}

  // Layer `index` from x to out, [L, D] (which may be x); k and v take its keys and values.
  void add(int64_t index, const T* x, T* k, T* v, T* out, bool states) {
    Layer<T>& layer = made_.emplace_back();
    const int64_t wide = s_.wide(), narrow = s_.narrow();
    T* u = states ? space_.u.take(tokens_ * wide) : nullptr;
    T* q = states ? space_.q.take(tokens_ * narrow) : nullptr;
    layer.input = {x, at(index, NORM_WEIGHT), at(index, NORM_BIAS), at(index, WEIGHT),
                   at(index, BIAS), s_.eps, {nullptr, tokens_, dim_}, {u, v, q, k},
                   {wide, wide, narrow, narrow}, {}, {}};
    layer.input.normed.data = space_.normed.take(layer.input.normed.size());
    for (size_t letter = 0; letter < 4; letter++)
      layer.input.activated[letter] = s_.activated.find("uvqk"[letter]) != std::string_view::npos;
    layer.input.cut();
    flops_ += 2. * tokens_ * dim_ * (wide + narrow) * (states ? 2 : 1);
    counts_.push_back(layer.input.normed.groups());
    counts_.push_back(int64_t(layer.input.chunks.size()));
    if (states) finish(layer, index, x, {u, k, v, q}, out);
  }

  void run() {
    const int64_t worth = 1 + int64_t(flops_ / THREAD_FLOPS);
    run_phases(counts_, std::min<int64_t>(at::get_num_threads(), worth),
               [&](int64_t phase, int64_t index) {
                 made_[phase / PHASES].run(phase % PHASES, index);
               });
  }

  static Workspace<T>& space() {
    thread_local Workspace<T> made;  // kept: fresh pages cost more than few tokens do
    return made;
  }

 private:
  struct Letters {
    const T *u, *k, *v, *q;
  };

  const T* at(int64_t layer, Parameter which) const {
    return layers_.of(layer, which).template const_data_ptr<T>();
  }

  // Attention, gate and output.
  void finish(Layer<T>& layer, int64_t index, const T* x, Letters from, T* out) {
    const int64_t heads = s_.heads, wide = s_.wide();
    const cached::Tokens<T> q(from.q, tokens_, heads, s_.attention_dim);
    const cached::Tokens<T> k(from.k, tokens_, heads, s_.attention_dim);
    const cached::Tokens<T> v(from.v, tokens_, heads, s_.hidden_dim);
    const cached::Cache cache{layers_.cache_k[index], layers_.cache_v[index], r_.lengths, r_.table,
                              r_.cache_times};
    T* attended = space_.attended.take(tokens_ * wide);
    layer.rows = cached::rows_of<T>(k, v, r_.offsets, cache, r_.targets, r_.times);
    layer.bias = bias_of<T>(maybe(layers_.position, index), maybe(layers_.time, index),
                            layers_.steps, layers_.cells);
    layer.attention.emplace(cached::Forward<T>{
        layer.rows, s_.mask, layer.bias, q, k, v, Sink(attended, heads, s_.hidden_dim),
        T(s_.alpha), T(s_.divisor), s_.attention_dim, s_.hidden_dim,
        up(s_.hidden_dim, PANEL<T>)});
    layer.tasks = cached::cut(layer.rows, heads);
    layer.output = Output<T>{x, from.u, attended, at(index, OUT_NORM_WEIGHT),
                             at(index, OUT_NORM_BIAS), at(index, OUT_WEIGHT), s_.eps, wide,
                             s_.groups, dim_, layers_.of(index, OUT_NORM_WEIGHT).numel() != wide,
                             s_.concat, {nullptr, tokens_, s_.gated()}, out};
    layer.output->gated.data = space_.gated.take(layer.output->gated.size());
    flops_ += 2. * tokens_ * dim_ * s_.gated();
    for (const Task& task : layer.tasks)
      flops_ += 2. * task.cost * (s_.attention_dim + s_.hidden_dim);
    counts_.push_back(int64_t(layer.tasks.size()));
    counts_.push_back(layer.output->gated.groups());
    counts_.push_back(layer.output->chunks());
  }

  static std::optional<at::Tensor> maybe(at::TensorList list, int64_t index) {
    return list.empty() ? std::nullopt : std::optional<at::Tensor>(list[index]);
  }

  Workspace<T>& space_ = space();
  int64_t tokens_, dim_;
  const Shape& s_;
  const Rows& r_;
  const Layers& layers_;
  std::deque<Layer<T>> made_;
  std::vector<int64_t> counts_;
  double flops_ = 0;
};

template <class T>
void run(const at::Tensor& x, const Shape& s, const Rows& r, const Layers& layers, bool states,
         const at::Tensor& out, std::vector<at::Tensor>& ks, std::vector<at::Tensor>& vs) {
  Stack<T> stack(x, s, r, layers);
  Workspace<T>& space = Stack<T>::space();
  const T* from = x.const_data_ptr<T>();
  T* to = out.mutable_data_ptr<T>();
  for (int64_t layer = 0; layer < layers.count(); layer++) {
    T* k = ks.empty() ? space.k.take(x.size(0) * s.narrow()) : ks[layer].mutable_data_ptr<T>();
    T* v = vs.empty() ? space.v.take(x.size(0) * s.wide()) : vs[layer].mutable_data_ptr<T>();
    stack.add(layer, from, k, v, to, states || layer + 1 < layers.count());
    from = to;  // a token's state is read where its next one is written
  }
  stack.run();
}

std::tuple<at::Tensor, std::vector<at::Tensor>, std::vector<at::Tensor>> stu_layers(
    const at::Tensor& x, at::TensorList parameters, int64_t heads, int64_t attention_dim,
    int64_t hidden_dim, int64_t groups, std::string_view activated, bool concat, double eps,
    const at::Tensor& offsets, at::TensorList cache_k, at::TensorList cache_v,
    const at::Tensor& lengths, const std::optional<at::Tensor>& table,
    const std::optional<at::Tensor>& cache_times, const std::optional<at::Tensor>& targets,
    const std::optional<at::Tensor>& times, at::TensorList position, at::TensorList time,
    const std::optional<at::Tensor>& steps, const std::optional<at::Tensor>& cells, double alpha,
    double divisor, at::IntArrayRef mask, bool keep, bool states) {
  const Shape s{heads, attention_dim, hidden_dim, groups, activated,
                concat, eps, alpha, divisor, mask_of(mask)};
  const Rows r{offsets, lengths, table, cache_times, targets, times};
  const Layers layers{parameters, cache_k, cache_v, position, time, steps, cells};
  check(x, s, r, layers);
  TORCH_CHECK_VALUE(keep || states, "neither keys and values nor states are wanted");
  std::vector<at::Tensor> ks, vs;
  for (int64_t layer = 0; keep && layer < layers.count(); layer++) {
    ks.push_back(at::empty({x.size(0), heads, attention_dim}, x.options()));
    vs.push_back(at::empty({x.size(0), heads, hidden_dim}, x.options()));
  }
  const bool writes = states || layers.count() > 1;
  at::Tensor out = at::empty({writes ? x.size(0) : 0, x.size(1)}, x.options());
  if (x.scalar_type() == at::kDouble)
    run<double>(x, s, r, layers, states, out, ks, vs);
  else
    run<float>(x, s, r, layers, states, out, ks, vs);
  return {out, ks, vs};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(tzgen_native, m) {
  m.def(
      "stu_layers(Tensor x, Tensor[] parameters, int heads, int attention_dim, int hidden_dim, "
      "int groups, str activated, bool concat, float eps, Tensor offsets, Tensor[] cache_k, "
      "Tensor[] cache_v, Tensor cache_lengths, Tensor? cache_table, Tensor? cache_timestamps, "
      "Tensor? num_targets, Tensor? timestamps, Tensor[] position, Tensor[] time, Tensor? steps, "
      "Tensor? cells, float alpha, float divisor, int[] mask, bool keep, bool states) "
      "-> (Tensor, Tensor[], Tensor[])",
      &stu_layers);
}

}  // namespace tzgen
