// The engine's operators for Paddle: what a network needs, on channels-last tensors [batch, height, width, channels]
// in float32 or bfloat16, with parameters and their gradients always in float32.
#include <omp.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <tuple>

#include "fireflies.h"
#include "memory.h"
#include "neighbours.h"
#include "numbers.h"
#include "onednn.h"
#include "orthogonalize.h"
#include "paddle/phi/api/ext/op_meta_info.h"
#include "paddle/phi/api/include/tensor_utils.h"
#include "weights_gradient.h"

namespace {

using paddle::DataType;
using paddle::Tensor;
using Shape = std::vector<int64_t>;

// --- Threads ---------------------------------------------------------------------------------------------------

int thread_count = 1;

// Paddle keeps its own loops at one thread; an operator of the engine uses more while it runs. One runs at a
// time, whichever thread of Python calls it: they share compiled primitives, and each has all cores anyway.
class Threads {
 public:
  Threads() : lock_(Mutex()), before_(omp_get_max_threads()) { omp_set_num_threads(thread_count); }
  ~Threads() { omp_set_num_threads(before_); }
  Threads(const Threads&) = delete;

 private:
  static std::mutex& Mutex() {
    static std::mutex mutex;
    return mutex;
  }
  std::lock_guard<std::mutex> lock_;
  int before_;
};

// --- Tensors ---------------------------------------------------------------------------------------------------

Tensor Empty(const Shape& shape, DataType type) {
  size_t bytes = type == DataType::FLOAT32 ? 4 : 2;
  for (int64_t size : shape) bytes *= size;
  void* data = Pool::Get().Take(bytes);
  return paddle::from_blob(data, shape, type, phi::DataLayout::NCHW, paddle::CPUPlace(),
                           [](void* block) { Pool::Get().Give(block); });
}

// Stands for a gradient that nobody needs: Paddle wants every output to be there.
Tensor Unneeded(DataType type) { return Empty({1}, type); }

template <class E>
const E* In(const Tensor& tensor) {
  return static_cast<const E*>(tensor.data());
}
template <class E>
E* Out(Tensor& tensor) {
  return static_cast<E*>(const_cast<void*>(tensor.data()));
}

// Calls `function` with a value of the tensor's element type.
template <class Function>
void WithType(const Tensor& tensor, Function function) {
  if (tensor.dtype() == DataType::FLOAT32) {
    function(float{});
  } else if (tensor.dtype() == DataType::BFLOAT16) {
    function(bf16{});
  } else {
    PD_THROW("The engine computes in float32 and bfloat16 only.");
  }
}

onednn::Type TypeOf(const Tensor& tensor) {
  return tensor.dtype() == DataType::BFLOAT16 ? onednn::kBf16 : onednn::kF32;
}

// --- Convolution -----------------------------------------------------------------------------------------------

// One convolution's geometry: odd square kernel, stride 1, output of the input's size.
struct Geometry {
  int64_t batch, height, width, inputs, outputs, kernel;
  onednn::Type type;
  float slope;         // of the leaky ReLU that follows; 1 for none
  onednn::Type result;  // float32 of a network's last layer; else the input's type

  auto Key() const { return std::tie(batch, height, width, inputs, outputs, kernel, type, slope, result); }
  bool operator<(const Geometry& other) const { return Key() < other.Key(); }

  int64_t Pixels() const { return batch * height * width; }
  static onednn::Desc ChannelsLast(int64_t n, int64_t h, int64_t w, int64_t c, onednn::Type type) {
    return onednn::MakeDesc({n, c, h, w}, type, {h * w * c, 1, w * c, c});
  }
  onednn::Desc Source() const { return ChannelsLast(batch, height, width, inputs, type); }
  onednn::Desc Target() const { return ChannelsLast(batch, height, width, outputs, result); }
  onednn::Desc Bias() const { return onednn::MakeDesc({outputs}, onednn::kF32, {1}); }
  // As the parameters are stored...
  onednn::Desc Weights() const {
    int64_t area = kernel * kernel;
    return onednn::MakeDesc({outputs, inputs, kernel, kernel}, onednn::kF32, {inputs * area, area, kernel, 1});
  }
  // ... and as a primitive wants to have them.
  onednn::Desc AnyWeights(onednn::Type weights_type) const {
    return onednn::MakeDesc({outputs, inputs, kernel, kernel}, weights_type);
  }
};

constexpr int64_t kUnit[] = {1, 1}, kNone[] = {0, 0}, kHalf[] = {0, 0, 1, 1, 2, 2, 3, 3};

// The three passes of one convolution and the changes of layout of its weights, each compiled when first needed.
class Convolution {
 public:
  // Compiled primitives are kept. Images of ever new sizes would fill the memory with them: start anew at times.
  static Convolution& Get(const Geometry& geometry) {
    static std::map<Geometry, std::unique_ptr<Convolution>> known;
    auto found = known.find(geometry);
    if (found == known.end()) {
      if (known.size() >= 512) known.clear();
      found = known.emplace(geometry, new Convolution(geometry)).first;
    }
    return *found->second;
  }

  void Forward(const void* x, const float* weights, const float* bias, void* y) {
    auto wanted = forward_->Layout(onednn::kWeights);
    Scratch ready(forward_->Bytes(onednn::kWeights)), scratch(forward_->Bytes(onednn::kScratchpad));
    forward_weights_->Run({{onednn::kArgSrc, weights_.get(), weights}, {onednn::kArgDst, wanted, ready.data()}});
    forward_->Run({{onednn::kArgSrc, source_.get(), x},
                   {onednn::kArgWeights, wanted, ready.data()},
                   {onednn::kArgBias, bias_.get(), bias},
                   {onednn::kArgDst, target_.get(), y},
                   {onednn::kArgScratchpad, forward_->Layout(onednn::kScratchpad), scratch.data()}});
  }

  void BackwardData(const void* dz, const float* weights, void* dx) {
    if (data_ == nullptr) CompileBackwardData();
    auto wanted = data_->Layout(onednn::kWeights);
    Scratch ready(data_->Bytes(onednn::kWeights)), scratch(data_->Bytes(onednn::kScratchpad));
    data_weights_->Run({{onednn::kArgSrc, weights_.get(), weights}, {onednn::kArgDst, wanted, ready.data()}});
    data_->Run({{onednn::kArgDiffDst, target_.get(), dz},
                {onednn::kArgWeights, wanted, ready.data()},
                {onednn::kArgDiffSrc, source_.get(), dx},
                {onednn::kArgScratchpad, data_->Layout(onednn::kScratchpad), scratch.data()}});
  }

  void BackwardWeights(const void* x, const void* dz, float* dweights, float* dbias) {
    if (weights_pass_ == nullptr) CompileBackwardWeights();
    auto given = weights_pass_->Layout(onednn::kDiffWeights);
    Scratch raw(weights_pass_->Bytes(onednn::kDiffWeights)), scratch(weights_pass_->Bytes(onednn::kScratchpad));
    weights_pass_->Run({{onednn::kArgSrc, source_.get(), x},
                        {onednn::kArgDiffDst, target_.get(), dz},
                        {onednn::kArgDiffWeights, given, raw.data()},
                        {onednn::kArgDiffBias, bias_.get(), dbias},
                        {onednn::kArgScratchpad, weights_pass_->Layout(onednn::kScratchpad), scratch.data()}});
    weights_back_->Run({{onednn::kArgSrc, given, raw.data()}, {onednn::kArgDst, weights_.get(), dweights}});
  }

 private:
  using Owned = std::unique_ptr<onednn::Primitive>;

  explicit Convolution(const Geometry& geometry)
      : geometry_(geometry),
        source_(geometry.Source()),
        target_(geometry.Target()),
        bias_(geometry.Bias()),
        weights_(geometry.Weights()),
        padding_(kHalf + geometry.kernel / 2 * 2) {
    dnnl_primitive_desc_t description;
    onednn::Attributes attributes(geometry.slope);
    onednn::Check(dnnl_convolution_forward_primitive_desc_create(
                      &description, onednn::Engine(), onednn::kForwardTraining, onednn::kConvolutionDirect,
                      source_.get(), geometry.AnyWeights(geometry.type).get(), bias_.get(), target_.get(), kUnit,
                      kNone, padding_, padding_, attributes),
                  "describing a convolution");
    forward_ = Owned(new onednn::Primitive(description));
    forward_weights_ = Reorder(weights_.get(), forward_->Layout(onednn::kWeights));
  }

  void CompileBackwardData() {
    dnnl_primitive_desc_t description;
    onednn::Attributes attributes;
    onednn::Check(dnnl_convolution_backward_data_primitive_desc_create(
                      &description, onednn::Engine(), onednn::kConvolutionDirect, source_.get(),
                      geometry_.AnyWeights(geometry_.type).get(), target_.get(), kUnit, kNone, padding_, padding_,
                      forward_->Description(), attributes),
                  "describing a convolution's gradient to its input");
    data_ = Owned(new onednn::Primitive(description));
    data_weights_ = Reorder(weights_.get(), data_->Layout(onednn::kWeights));
  }

  void CompileBackwardWeights() {
    dnnl_primitive_desc_t description;
    onednn::Attributes attributes;
    onednn::Check(dnnl_convolution_backward_weights_primitive_desc_create(
                      &description, onednn::Engine(), onednn::kConvolutionDirect, source_.get(),
                      geometry_.AnyWeights(onednn::kF32).get(), bias_.get(), target_.get(), kUnit, kNone, padding_,
                      padding_, forward_->Description(), attributes),
                  "describing a convolution's gradient to its weights");
    weights_pass_ = Owned(new onednn::Primitive(description));
    weights_back_ = Reorder(weights_pass_->Layout(onednn::kDiffWeights), weights_.get());
  }

  static Owned Reorder(const struct dnnl_memory_desc* from, const struct dnnl_memory_desc* to) {
    dnnl_primitive_desc_t description;
    onednn::Check(dnnl_reorder_primitive_desc_create(&description, from, onednn::Engine(), to, onednn::Engine(),
                                                     nullptr),
                  "describing a change of layout");
    return Owned(new onednn::Primitive(description));
  }

  Geometry geometry_;
  onednn::Desc source_, target_, bias_, weights_;
  const int64_t* padding_;
  Owned forward_, forward_weights_, data_, data_weights_, weights_pass_, weights_back_;
};

Geometry GeometryOf(const Tensor& x, const Shape& weights, float slope, bool exact = false) {
  Shape shape = x.shape();
  PD_CHECK(shape.size() == 4 && weights.size() == 4 && shape[3] == weights[1],
           "The channels of the image and of the convolution's weights differ.");
  PD_CHECK(weights[2] == weights[3] && weights[2] % 2 == 1 && weights[2] <= 7, "The kernel must be odd and square.");
  return {shape[0], shape[1], shape[2], shape[3], weights[0], weights[2], TypeOf(x), slope,
          exact ? onednn::kF32 : TypeOf(x)};
}

std::vector<Tensor> ConvForward(const Tensor& x, const Tensor& weights, const Tensor& bias, float slope, bool) {
  Threads threads;
  Geometry geometry = GeometryOf(x, weights.shape(), slope);
  Tensor y = Empty({geometry.batch, geometry.height, geometry.width, geometry.outputs}, x.dtype());
  Convolution::Get(geometry).Forward(x.data(), In<float>(weights), In<float>(bias), Out<void>(y));
  return {y};
}

// The last layer of a network that is run without gradients: float32 comes out, whatever went in. In bfloat16 an image
// would have a hundred and thirty shades between grey and white.
std::vector<Tensor> ExactConvForward(const Tensor& x, const Tensor& weights, const Tensor& bias, float slope) {
  Threads threads;
  Geometry geometry = GeometryOf(x, weights.shape(), slope, true);
  Tensor y = Empty({geometry.batch, geometry.height, geometry.width, geometry.outputs}, DataType::FLOAT32);
  Convolution::Get(geometry).Forward(x.data(), In<float>(weights), In<float>(bias), Out<void>(y));
  return {y};
}

// The gradient before the leaky ReLU, whose sign is that of its result.
template <class E>
void BeforeActivation(const E* y, const E* dy, E* dz, int64_t count, float slope) {
#pragma omp parallel for simd schedule(static)
  for (int64_t i = 0; i < count; i++) {
    float gradient = Load(dy[i]);
    Store(dz[i], Load(y[i]) > 0 ? gradient : gradient * slope);
  }
}

// The gradients to weights and bias, and on the way `dz`, the one before the activation (dz == dy without one).
template <class E>
void ParameterGradients(const Geometry& geometry, const E* x, const E* y, const E* dy, E* dz, float* dweights,
                        float* dbias) {
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
  constexpr bool fast = true;
#elif defined(WEIGHTS_GRADIENT)
  // With the matrix tiles of AMX oneDNN's pass in bfloat16 takes a quarter of the time of ours.
  constexpr bool fast = std::is_same<E, float>::value;
#else
  constexpr bool fast = false;
#endif
  if constexpr (fast) {
    WeightsGradient(geometry, x, y, dy, dz, dweights, dbias);
  } else {
    if (dz != dy) BeforeActivation(y, dy, dz, geometry.Pixels() * geometry.outputs, geometry.slope);
    Convolution::Get(geometry).BackwardWeights(x, dz, dweights, dbias);
  }
}

std::vector<Tensor> ConvBackward(const Tensor& x, const Tensor& weights, const Tensor& y, const Tensor& dy,
                                 float slope, bool needs_dx) {
  Threads threads;
  Geometry geometry = GeometryOf(x, weights.shape(), slope);
  Tensor dz = slope == 1.0f ? dy : Empty(dy.shape(), dy.dtype());
  Tensor dweights = Empty(weights.shape(), DataType::FLOAT32), dbias = Empty({geometry.outputs}, DataType::FLOAT32);
  WithType(x, [&](auto element) {
    using E = decltype(element);
    ParameterGradients(geometry, In<E>(x), In<E>(y), In<E>(dy), Out<E>(dz), Out<float>(dweights), Out<float>(dbias));
  });
  Tensor dx = needs_dx ? Empty(x.shape(), x.dtype()) : Unneeded(x.dtype());
  if (needs_dx) Convolution::Get(geometry).BackwardData(dz.data(), In<float>(weights), Out<void>(dx));
  return {dx, dweights, dbias};
}

// --- Pooling ---------------------------------------------------------------------------------------------------

std::vector<Tensor> PoolForward(const Tensor& x) {
  Threads threads;
  Shape shape = x.shape();
  int64_t height = shape[1], width = shape[2], channels = shape[3], rows = height / 2, columns = width / 2;
  Tensor y = Empty({shape[0], rows, columns, channels}, x.dtype());
  WithType(x, [&](auto element) {
    using E = decltype(element);
    const E* from = In<E>(x);
    E* to = Out<E>(y);
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t n = 0; n < shape[0]; n++) {
      for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j < columns; j++) {
          const E* top = from + ((n * height + 2 * i) * width + 2 * j) * channels;
          const E* bottom = top + width * channels;
          E* result = to + ((n * rows + i) * columns + j) * channels;
#pragma omp simd
          for (int64_t c = 0; c < channels; c++) {
            float a = Load(top[c]), b = Load(top[c + channels]);
            float d = Load(bottom[c]), e = Load(bottom[c + channels]);
            float upper = a > b ? a : b, lower = d > e ? d : e;
            Store(result[c], upper > lower ? upper : lower);
          }
        }
      }
    }
  });
  return {y};
}

// The gradient goes to the first of the four that equals the maximum, as in Paddle.
std::vector<Tensor> PoolBackward(const Tensor& x, const Tensor& y, const Tensor& dy) {
  Threads threads;
  Shape shape = x.shape();
  int64_t height = shape[1], width = shape[2], channels = shape[3], rows = height / 2, columns = width / 2;
  Tensor dx = Empty(shape, x.dtype());
  // What a pair of rows and columns leaves over at the end got no say in the result.
  if (height % 2 || width % 2) std::memset(Out<void>(dx), 0, x.numel() * phi::SizeOf(x.dtype()));
  WithType(x, [&](auto element) {
    using E = decltype(element);
    const E *from = In<E>(x), *result = In<E>(y), *gradient = In<E>(dy);
    E* to = Out<E>(dx);
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t n = 0; n < shape[0]; n++) {
      for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j < columns; j++) {
          int64_t first = ((n * height + 2 * i) * width + 2 * j) * channels, pooled = ((n * rows + i) * columns + j) * channels;
          const E *top = from + first, *bottom = top + width * channels;
          E *dtop = to + first, *dbottom = dtop + width * channels;
#pragma omp simd
          for (int64_t c = 0; c < channels; c++) {
            float maximum = Load(result[pooled + c]), g = Load(gradient[pooled + c]);
            bool a = Load(top[c]) == maximum;
            bool b = !a && Load(top[c + channels]) == maximum;
            bool d = !a && !b && Load(bottom[c]) == maximum;
            Store(dtop[c], a ? g : 0.0f);
            Store(dtop[c + channels], b ? g : 0.0f);
            Store(dbottom[c], d ? g : 0.0f);
            Store(dbottom[c + channels], a || b || d ? 0.0f : g);
          }
        }
      }
    }
  });
  return {dx};
}

// --- Upsampling with concatenation -----------------------------------------------------------------------------

// A 2x2 transposed convolution with stride 2 is a 1x1 convolution to four times the channels, in blocks of
// (row, column, channel), whose blocks then go to the four pixels.

// Weights [inputs, outputs, 2, 2] <-> [(row, column, output), inputs].
void ToBlocks(const float* weights, float* blocks, int64_t inputs, int64_t outputs) {
  for (int64_t i = 0; i < inputs; i++)
    for (int64_t o = 0; o < outputs; o++)
      for (int64_t k = 0; k < 4; k++) blocks[(k * outputs + o) * inputs + i] = weights[(i * outputs + o) * 4 + k];
}
void FromBlocks(const float* blocks, float* weights, int64_t inputs, int64_t outputs) {
  for (int64_t i = 0; i < inputs; i++)
    for (int64_t o = 0; o < outputs; o++)
      for (int64_t k = 0; k < 4; k++) weights[(i * outputs + o) * 4 + k] = blocks[(k * outputs + o) * inputs + i];
}

// Sizes of one upsampling: `x` [batch, height, width, inputs] and `skip` [batch, 2 height, 2 width, extra].
struct Upsampling {
  Shape x, skip, weights;
  int64_t outputs, extra, channels;

  Upsampling(const Tensor& x_, const Tensor& weights_, const Tensor& skip_)
      : x(x_.shape()), skip(skip_.shape()), weights(weights_.shape()) {
    PD_CHECK(weights.size() == 4 && weights[2] == 2 && weights[3] == 2 && weights[0] == x[3],
             "The channels of the image and of the upsampling's weights differ.");
    PD_CHECK(skip[0] == x[0] && skip[1] == 2 * x[1] && skip[2] == 2 * x[2] && skip_.dtype() == x_.dtype(),
             "The image to concatenate must have twice the size, and the same type.");
    outputs = weights[1], extra = skip[3], channels = outputs + extra;
  }
  Geometry Blocks(const Tensor& x_) const {
    return {x[0], x[1], x[2], x[3], 4 * outputs, 1, TypeOf(x_), 1.0f, TypeOf(x_)};
  }
  Shape BlockShape() const { return {x[0], x[1], x[2], 4 * outputs}; }

  // Calls function(block, offsets of its pixel in `blocks`, `skip` and the concatenated tensor).
  template <class Function>
  void ForEachPixel(Function function) const {
    int64_t height = skip[1], width = skip[2];
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t n = 0; n < x[0]; n++) {
      for (int64_t i = 0; i < height; i++) {
        for (int64_t j = 0; j < width; j++) {
          int64_t pixel = (n * height + i) * width + j;
          int64_t block = ((n * x[1] + i / 2) * x[2] + j / 2) * 4 + i % 2 * 2 + j % 2;
          function(block * outputs, pixel * extra, pixel * channels);
        }
      }
    }
  }
};

std::vector<Tensor> UpsampleForward(const Tensor& x, const Tensor& weights, const Tensor& bias, const Tensor& skip,
                                    bool, bool) {
  Threads threads;
  Upsampling up(x, weights, skip);
  std::vector<float> block_weights(weights.numel()), block_bias(4 * up.outputs);
  ToBlocks(In<float>(weights), block_weights.data(), up.x[3], up.outputs);
  for (size_t i = 0; i < block_bias.size(); i++) block_bias[i] = In<float>(bias)[i % up.outputs];
  Tensor blocks = Empty(up.BlockShape(), x.dtype());
  Convolution::Get(up.Blocks(x)).Forward(x.data(), block_weights.data(), block_bias.data(), Out<void>(blocks));
  Tensor y = Empty({up.skip[0], up.skip[1], up.skip[2], up.channels}, x.dtype());
  WithType(x, [&](auto element) {
    using E = decltype(element);
    const E *from = In<E>(blocks), *extra = In<E>(skip);
    E* to = Out<E>(y);
    up.ForEachPixel([&](int64_t block, int64_t other, int64_t all) {
      std::memcpy(to + all, from + block, up.outputs * sizeof(E));
      std::memcpy(to + all + up.outputs, extra + other, up.extra * sizeof(E));
    });
  });
  return {y};
}

std::vector<Tensor> UpsampleBackward(const Tensor& x, const Tensor& weights, const Tensor& skip, const Tensor& dy,
                                     bool needs_dx, bool needs_dskip) {
  Threads threads;
  Upsampling up(x, weights, skip);
  Tensor dblocks = Empty(up.BlockShape(), x.dtype());
  Tensor dx = needs_dx ? Empty(up.x, x.dtype()) : Unneeded(x.dtype());
  Tensor dskip = needs_dskip ? Empty(up.skip, x.dtype()) : Unneeded(x.dtype());
  WithType(x, [&](auto element) {
    using E = decltype(element);
    const E* from = In<E>(dy);
    E *to = Out<E>(dblocks), *extra = needs_dskip ? Out<E>(dskip) : nullptr;
    up.ForEachPixel([&](int64_t block, int64_t other, int64_t all) {
      std::memcpy(to + block, from + all, up.outputs * sizeof(E));
      if (extra != nullptr) std::memcpy(extra + other, from + all + up.outputs, up.extra * sizeof(E));
    });
  });

  std::vector<float> block_weights(weights.numel()), block_bias(4 * up.outputs);
  WithType(x, [&](auto element) {
    using E = decltype(element);
    ParameterGradients(up.Blocks(x), In<E>(x), In<E>(dblocks), In<E>(dblocks), Out<E>(dblocks),
                       block_weights.data(), block_bias.data());
  });
  Tensor dweights = Empty(up.weights, DataType::FLOAT32), dbias = Empty({up.outputs}, DataType::FLOAT32);
  FromBlocks(block_weights.data(), Out<float>(dweights), up.x[3], up.outputs);
  for (int64_t o = 0; o < up.outputs; o++) {
    const float* part = &block_bias[o];
    Out<float>(dbias)[o] = part[0] + part[up.outputs] + part[2 * up.outputs] + part[3 * up.outputs];
  }
  if (needs_dx) {
    ToBlocks(In<float>(weights), block_weights.data(), up.x[3], up.outputs);
    Convolution::Get(up.Blocks(x)).BackwardData(dblocks.data(), block_weights.data(), Out<void>(dx));
  }
  return {dx, dweights, dbias, dskip};
}

// The same without weights: each pixel of `x` becomes 2x2, and `skip` is put beside it.
struct Enlarging {
  Shape x, skip;

  Enlarging(const Tensor& x_, const Tensor& skip_) : x(x_.shape()), skip(skip_.shape()) {
    PD_CHECK(skip[0] == x[0] && skip[1] == 2 * x[1] && skip[2] == 2 * x[2] && skip_.dtype() == x_.dtype(),
             "The image to concatenate must have twice the size, and the same type.");
  }
  // Calls function(offsets of a pixel in `x`, and of its 2x2 pixels' upper left one in `skip` and the result).
  template <class Function>
  void ForEachCell(Function function) const {
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t n = 0; n < x[0]; n++) {
      for (int64_t i = 0; i < x[1]; i++) {
        for (int64_t j = 0; j < x[2]; j++) {
          int64_t corner = (n * skip[1] + 2 * i) * skip[2] + 2 * j;
          function(((n * x[1] + i) * x[2] + j) * x[3], corner * skip[3], corner * (x[3] + skip[3]));
        }
      }
    }
  }
};

std::vector<Tensor> EnlargeForward(const Tensor& x, const Tensor& skip) {
  Threads threads;
  Enlarging sizes(x, skip);
  int64_t inner = sizes.x[3], outer = sizes.skip[3], channels = inner + outer, width = sizes.skip[2];
  Tensor y = Empty({sizes.skip[0], sizes.skip[1], width, channels}, x.dtype());
  WithType(x, [&](auto element) {
    using E = decltype(element);
    const E *from = In<E>(x), *extra = In<E>(skip);
    E* to = Out<E>(y);
    sizes.ForEachCell([&](int64_t small, int64_t other, int64_t all) {
      for (int64_t pixel : {int64_t{0}, int64_t{1}, width, width + 1}) {
        std::memcpy(to + all + pixel * channels, from + small, inner * sizeof(E));
        std::memcpy(to + all + pixel * channels + inner, extra + other + pixel * outer, outer * sizeof(E));
      }
    });
  });
  return {y};
}

std::vector<Tensor> EnlargeBackward(const Tensor& x, const Tensor& skip, const Tensor& dy) {
  Threads threads;
  Enlarging sizes(x, skip);
  int64_t inner = sizes.x[3], outer = sizes.skip[3], channels = inner + outer, width = sizes.skip[2];
  Tensor dx = Empty(sizes.x, x.dtype()), dskip = Empty(sizes.skip, x.dtype());
  WithType(x, [&](auto element) {
    using E = decltype(element);
    const E* from = In<E>(dy);
    E *to = Out<E>(dx), *extra = Out<E>(dskip);
    sizes.ForEachCell([&](int64_t small, int64_t other, int64_t all) {
      const E *top = from + all, *bottom = top + width * channels;
#pragma omp simd
      for (int64_t c = 0; c < inner; c++) {
        Store(to[small + c], (Load(top[c]) + Load(top[channels + c])) + (Load(bottom[c]) + Load(bottom[channels + c])));
      }
      for (int64_t pixel : {int64_t{0}, int64_t{1}, width, width + 1}) {
        std::memcpy(extra + other + pixel * outer, from + all + pixel * channels + inner, outer * sizeof(E));
      }
    });
  });
  return {dx, dskip};
}

// --- Pixels as channels ----------------------------------------------------------------------------------------

// Between an image and one of half the size whose channels hold 2x2 pixels each, in the order (channel, row, column).
// `x` is the image that is given; `apart` tells that it is the large one.
Tensor Rearranged(const Tensor& x, bool apart) {
  Threads threads;
  Shape given = x.shape();
  PD_CHECK(apart ? given[1] % 2 == 0 && given[2] % 2 == 0 : given[3] % 4 == 0,
           "The image must have an even size to be taken apart, and four channels for each to be put together.");
  int64_t rows = apart ? given[1] / 2 : given[1], columns = apart ? given[2] / 2 : given[2];
  int64_t channels = apart ? given[3] : given[3] / 4;
  Tensor y = Empty(apart ? Shape{given[0], rows, columns, 4 * channels} : Shape{given[0], 2 * rows, 2 * columns, channels},
                   x.dtype());
  WithType(x, [&](auto element) {
    using E = decltype(element);
    const E* from = In<E>(x);
    E* to = Out<E>(y);
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t n = 0; n < given[0]; n++) {
      for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j < columns; j++) {
          int64_t small = ((n * rows + i) * columns + j) * 4 * channels;
          for (int64_t k = 0; k < 4; k++) {
            int64_t large = (((n * rows + i) * 2 + k / 2) * columns * 2 + 2 * j + k % 2) * channels;
            for (int64_t c = 0; c < channels; c++) {
              if (apart) {
                to[small + 4 * c + k] = from[large + c];
              } else {
                to[large + c] = from[small + 4 * c + k];
              }
            }
          }
        }
      }
    }
  });
  return y;
}

std::vector<Tensor> RearrangeForward(const Tensor& x, bool apart) { return {Rearranged(x, apart)}; }
std::vector<Tensor> RearrangeBackward(const Tensor& dy, bool apart) { return {Rearranged(dy, !apart)}; }

// --- Sums ------------------------------------------------------------------------------------------------------

std::vector<Tensor> AddForward(const Tensor& x, const Tensor& y, bool, bool) {
  Threads threads;
  PD_CHECK(x.shape() == y.shape() && x.dtype() == y.dtype(), "Only images of one shape and type can be added.");
  Tensor sum = Empty(x.shape(), x.dtype());
  WithType(x, [&](auto element) {
    using E = decltype(element);
    const E *first = In<E>(x), *second = In<E>(y);
    E* to = Out<E>(sum);
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < x.numel(); i++) Store(to[i], Load(first[i]) + Load(second[i]));
  });
  return {sum};
}

std::vector<Tensor> AddBackward(const Tensor& dsum, bool needs_dx, bool needs_dy) {
  Threads threads;
  std::vector<Tensor> gradients;
  for (bool needed : {needs_dx, needs_dy}) {
    gradients.push_back(needed ? Empty(dsum.shape(), dsum.dtype()) : Unneeded(dsum.dtype()));
    if (needed) std::memcpy(Out<void>(gradients.back()), dsum.data(), dsum.numel() * phi::SizeOf(dsum.dtype()));
  }
  return gradients;
}

// --- Neighbours weighed by likeness ----------------------------------------------------------------------------

// The sizes of one image of each of these, [batch, channels, height, width].
neighbours::Sizes SizesOf(const Tensor& light, const Tensor& guide, const Tensor& precision, const Tensor& trust,
                          int radius, int dilation, const std::vector<int>& groups) {
  Shape shape = light.shape();
  for (const Tensor* tensor : {&light, &guide, &precision, &trust}) {
    Shape other = tensor->shape();
    PD_CHECK(tensor->dtype() == DataType::FLOAT32 && other.size() == 4 && other[0] == shape[0] &&
                 other[2] == shape[2] && other[3] == shape[3],
             "Light, guide, precision and trust must be float32 images of one size.");
  }
  int64_t guides = guide.shape()[1];
  int64_t grouped = std::accumulate(groups.begin(), groups.end(), int64_t{0});
  bool positive = std::all_of(groups.begin(), groups.end(), [](int count) { return count > 0; });
  PD_CHECK(precision.shape()[1] == int64_t(groups.size()) && grouped == guides + 1 && positive,
           "A precision for each group of guides was expected; the last one is for the distance.");
  PD_CHECK(trust.shape()[1] == 1 && radius >= 0 && dilation >= 1, "One channel of trust was expected, and a step.");
  return {shape[1], guides, shape[2], shape[3], radius, dilation, groups};
}

std::vector<Tensor> WeighForward(const Tensor& light, const Tensor& guide, const Tensor& precision,
                                 const Tensor& trust, int radius, int dilation, const std::vector<int>& groups) {
  Threads threads;
  neighbours::Sizes sizes = SizesOf(light, guide, precision, trust, radius, dilation, groups);
  Tensor result = Empty(light.shape(), DataType::FLOAT32);
  Scratch memory(neighbours::Average::Planes(sizes) * sizes.Plane() * sizeof(float));
  for (int64_t n = 0; n < light.shape()[0]; n++) {
    auto image = [&](const Tensor& tensor) { return In<float>(tensor) + n * tensor.shape()[1] * sizes.Pixels(); };
    neighbours::Average average(sizes, image(light), image(guide), image(trust), static_cast<float*>(memory.data()));
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < sizes.height; row++) {
      neighbours::Forward(sizes, average, image(precision), row,
                          Out<float>(result) + n * sizes.lights * sizes.Pixels());
    }
  }
  return {result};
}

// A thread for each image: two of them must not add to one pixel's gradient at once.
std::vector<Tensor> WeighBackward(const Tensor& light, const Tensor& guide, const Tensor& precision,
                                  const Tensor& trust, const Tensor& dresult, int radius, int dilation,
                                  const std::vector<int>& groups) {
  Threads threads;
  neighbours::Sizes sizes = SizesOf(light, guide, precision, trust, radius, dilation, groups);
  Tensor dlight = Empty(light.shape(), DataType::FLOAT32), dguide = Empty(guide.shape(), DataType::FLOAT32);
  Tensor dprecision = Empty(precision.shape(), DataType::FLOAT32), dtrust = Empty(trust.shape(), DataType::FLOAT32);
  int64_t planes = neighbours::Average::Planes(sizes), plane = sizes.Plane();
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < light.shape()[0]; n++) {
    auto at = [&](const Tensor& tensor) { return n * tensor.shape()[1] * sizes.Pixels(); };
    auto image = [&](const Tensor& tensor) { return In<float>(tensor) + at(tensor); };
    Scratch memory(2 * planes * plane * sizeof(float));
    float *widened = static_cast<float*>(memory.data()), *gradients = widened + planes * plane;
    neighbours::Average average(sizes, image(light), image(guide), image(trust), widened);
    neighbours::Backward(sizes, average, image(precision), image(dresult), gradients,
                         Out<float>(dprecision) + at(precision));
    sizes.Narrow(gradients, Out<float>(dlight) + at(light), sizes.lights);
    sizes.Narrow(gradients + sizes.lights * plane, Out<float>(dguide) + at(guide), sizes.guides);
    sizes.Narrow(gradients + (planes - 1) * plane, Out<float>(dtrust) + at(trust), 1);
  }
  return {dlight, dguide, dprecision, dtrust};
}

// Of a render [batch, 3, height, width] its colour and trust, [batch, 4, height, width]. It has no gradient.
std::vector<Tensor> Calm(const Tensor& render) {
  Threads threads;
  Shape shape = render.shape();
  PD_CHECK(render.dtype() == DataType::FLOAT32 && shape.size() == 4 && shape[1] == fireflies::kChannels,
           "A float32 render of three channels was expected.");
  fireflies::Sizes sizes{shape[2], shape[3]};
  int64_t plane = sizes.Plane(), planes = fireflies::kChannels;
  Tensor result = Empty({shape[0], planes + 1, shape[2], shape[3]}, DataType::FLOAT32);
  Scratch memory(2 * planes * plane * sizeof(float));
  float *first = static_cast<float*>(memory.data()), *second = first + planes * plane;
  for (int64_t n = 0; n < shape[0]; n++) {
    const float* light = In<float>(render) + n * planes * sizes.Pixels();
    float* to = Out<float>(result) + n * (planes + 1) * sizes.Pixels();
#pragma omp parallel
    {
#pragma omp for schedule(static)
      for (int64_t row = -1; row <= sizes.height; row++) fireflies::Widen(sizes, light, first, row);
#pragma omp for schedule(static)
      for (int64_t row = 0; row < sizes.height; row++)
        fireflies::Hold(sizes, first, second, to + planes * sizes.Pixels(), row);
#pragma omp for schedule(static)
      for (int64_t row = 0; row < sizes.height; row++)
        for (int64_t c = 0; c < planes; c++) fireflies::Blur(sizes, second + c * plane, first + c * plane, row, 1);
#pragma omp for schedule(static)
      for (int64_t row = 0; row < sizes.height; row++) {
        for (int64_t c = 0; c < planes; c++) {
          fireflies::Blur(sizes, first + c * plane, second + c * plane, row, sizes.Stride());
          std::memcpy(to + c * sizes.Pixels() + row * sizes.width, second + c * plane + sizes.Place(row, 0),
                      sizes.width * sizeof(float));
        }
      }
    }
  }
  return {result};
}

// --- The way in and out ----------------------------------------------------------------------------------------

// [batch, rows, columns] to [batch, columns, rows]: with the pixels on one side it swaps the place of the channels.
template <class From, class To>
void Transpose(const From* from, To* to, int64_t batch, int64_t pixels, int64_t channels, bool channels_last) {
  int64_t pixel = channels_last ? 1 : channels, channel = channels_last ? pixels : 1;
  int64_t to_pixel = channels_last ? channels : 1, to_channel = channels_last ? 1 : pixels;
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t n = 0; n < batch; n++) {
    for (int64_t p = 0; p < pixels; p++) {
      for (int64_t c = 0; c < channels; c++) {
        Store(to[n * pixels * channels + p * to_pixel + c * to_channel],
              Load(from[n * pixels * channels + p * pixel + c * channel]));
      }
    }
  }
}

Tensor ChannelsLast(const Tensor& image, DataType type) {
  Threads threads;
  PD_CHECK(image.dtype() == DataType::FLOAT32 && image.shape().size() == 4, "The engine takes float32 NCHW images.");
  Shape shape = image.shape();
  Tensor result = Empty({shape[0], shape[2], shape[3], shape[1]}, type);
  WithType(result, [&](auto element) {
    using E = decltype(element);
    Transpose(In<float>(image), Out<E>(result), shape[0], shape[2] * shape[3], shape[1], true);
  });
  return result;
}

Tensor ChannelsFirst(const Tensor& image) {
  Threads threads;
  Shape shape = image.shape();
  Tensor result = Empty({shape[0], shape[3], shape[1], shape[2]}, DataType::FLOAT32);
  WithType(image, [&](auto element) {
    using E = decltype(element);
    Transpose(In<E>(image), Out<float>(result), shape[0], shape[1] * shape[2], shape[3], false);
  });
  return result;
}

std::vector<Tensor> EnterForward(const Tensor& image, bool half) {
  return {ChannelsLast(image, half ? DataType::BFLOAT16 : DataType::FLOAT32)};
}
std::vector<Tensor> EnterBackward(const Tensor& dy, bool) { return {ChannelsFirst(dy)}; }
std::vector<Tensor> LeaveForward(const Tensor& image, bool) { return {ChannelsFirst(image)}; }
std::vector<Tensor> LeaveBackward(const Tensor& dy, bool half) {
  return {ChannelsLast(dy, half ? DataType::BFLOAT16 : DataType::FLOAT32)};
}

// --- The optimizer ---------------------------------------------------------------------------------------------

// In place: Paddle knows no operator with as many results as it is given arguments, unless they are the same.
void OrthogonalizeAll(std::vector<Tensor>& matrices) {
  Threads threads;
  for (const Tensor& matrix : matrices) {
    PD_CHECK(matrix.dtype() == DataType::FLOAT32 && matrix.shape().size() == 2, "A matrix of float32 was expected.");
  }
  // The largest first and dealt out like cards, so that the threads end together. (Not schedule(dynamic): Intel's
  // runtime gives code of another compiler some iterations twice.)
  std::vector<Tensor*> order;
  for (Tensor& matrix : matrices) order.push_back(&matrix);
  std::sort(order.begin(), order.end(), [](Tensor* a, Tensor* b) { return a->numel() > b->numel(); });
#pragma omp parallel for schedule(static, 1)
  for (size_t i = 0; i < order.size(); i++) {
    Orthogonalize(Out<float>(*order[i]), order[i]->shape()[0], order[i]->shape()[1]);
  }
}

}  // namespace

extern "C" void denoise_set_threads(int count) { thread_count = count; }
extern "C" void denoise_release() { Pool::Get().Release(); }

// --- Registration ----------------------------------------------------------------------------------------------

PD_BUILD_OP(denoise_conv)
    .Inputs({"X", "Weights", "Bias"})
    .Outputs({"Y"})
    .Attrs({"slope: float", "needs_dx: bool"})
    .SetKernelFn(PD_KERNEL(ConvForward));
PD_BUILD_GRAD_OP(denoise_conv)
    .Inputs({"X", "Weights", "Y", paddle::Grad("Y")})
    .Outputs({paddle::Grad("X"), paddle::Grad("Weights"), paddle::Grad("Bias")})
    .Attrs({"slope: float", "needs_dx: bool"})
    .SetKernelFn(PD_KERNEL(ConvBackward));

PD_BUILD_OP(denoise_exact_conv)
    .Inputs({"X", "Weights", "Bias"})
    .Outputs({"Y"})
    .Attrs({"slope: float"})
    .SetKernelFn(PD_KERNEL(ExactConvForward));

PD_BUILD_OP(denoise_pool).Inputs({"X"}).Outputs({"Y"}).SetKernelFn(PD_KERNEL(PoolForward));
PD_BUILD_GRAD_OP(denoise_pool)
    .Inputs({"X", "Y", paddle::Grad("Y")})
    .Outputs({paddle::Grad("X")})
    .SetKernelFn(PD_KERNEL(PoolBackward));

PD_BUILD_OP(denoise_upsample)
    .Inputs({"X", "Weights", "Bias", "Skip"})
    .Outputs({"Y"})
    .Attrs({"needs_dx: bool", "needs_dskip: bool"})
    .SetKernelFn(PD_KERNEL(UpsampleForward));
PD_BUILD_GRAD_OP(denoise_upsample)
    .Inputs({"X", "Weights", "Skip", paddle::Grad("Y")})
    .Outputs({paddle::Grad("X"), paddle::Grad("Weights"), paddle::Grad("Bias"), paddle::Grad("Skip")})
    .Attrs({"needs_dx: bool", "needs_dskip: bool"})
    .SetKernelFn(PD_KERNEL(UpsampleBackward));

PD_BUILD_OP(denoise_enlarge).Inputs({"X", "Skip"}).Outputs({"Y"}).SetKernelFn(PD_KERNEL(EnlargeForward));
PD_BUILD_GRAD_OP(denoise_enlarge)
    .Inputs({"X", "Skip", paddle::Grad("Y")})
    .Outputs({paddle::Grad("X"), paddle::Grad("Skip")})
    .SetKernelFn(PD_KERNEL(EnlargeBackward));

PD_BUILD_OP(denoise_rearrange)
    .Inputs({"X"})
    .Outputs({"Y"})
    .Attrs({"apart: bool"})
    .SetKernelFn(PD_KERNEL(RearrangeForward));
PD_BUILD_GRAD_OP(denoise_rearrange)
    .Inputs({paddle::Grad("Y")})
    .Outputs({paddle::Grad("X")})
    .Attrs({"apart: bool"})
    .SetKernelFn(PD_KERNEL(RearrangeBackward));

PD_BUILD_OP(denoise_add)
    .Inputs({"X", "Y"})
    .Outputs({"Sum"})
    .Attrs({"needs_dx: bool", "needs_dy: bool"})
    .SetKernelFn(PD_KERNEL(AddForward));
PD_BUILD_GRAD_OP(denoise_add)
    .Inputs({paddle::Grad("Sum")})
    .Outputs({paddle::Grad("X"), paddle::Grad("Y")})
    .Attrs({"needs_dx: bool", "needs_dy: bool"})
    .SetKernelFn(PD_KERNEL(AddBackward));

PD_BUILD_OP(denoise_weigh)
    .Inputs({"Light", "Guide", "Precision", "Trust"})
    .Outputs({"Result"})
    .Attrs({"radius: int", "dilation: int", "groups: std::vector<int>"})
    .SetKernelFn(PD_KERNEL(WeighForward));
PD_BUILD_GRAD_OP(denoise_weigh)
    .Inputs({"Light", "Guide", "Precision", "Trust", paddle::Grad("Result")})
    .Outputs({paddle::Grad("Light"), paddle::Grad("Guide"), paddle::Grad("Precision"), paddle::Grad("Trust")})
    .Attrs({"radius: int", "dilation: int", "groups: std::vector<int>"})
    .SetKernelFn(PD_KERNEL(WeighBackward));

PD_BUILD_OP(denoise_calm).Inputs({"Render"}).Outputs({"Result"}).SetKernelFn(PD_KERNEL(Calm));

PD_BUILD_OP(denoise_enter)
    .Inputs({"Image"})
    .Outputs({"Y"})
    .Attrs({"half: bool"})
    .SetKernelFn(PD_KERNEL(EnterForward));
PD_BUILD_GRAD_OP(denoise_enter)
    .Inputs({paddle::Grad("Y")})
    .Outputs({paddle::Grad("Image")})
    .Attrs({"half: bool"})
    .SetKernelFn(PD_KERNEL(EnterBackward));

PD_BUILD_OP(denoise_leave)
    .Inputs({"Image"})
    .Outputs({"Y"})
    .Attrs({"half: bool"})
    .SetKernelFn(PD_KERNEL(LeaveForward));
PD_BUILD_GRAD_OP(denoise_leave)
    .Inputs({paddle::Grad("Y")})
    .Outputs({paddle::Grad("Image")})
    .Attrs({"half: bool"})
    .SetKernelFn(PD_KERNEL(LeaveBackward));

PD_BUILD_OP(denoise_orthogonalize)
    .Inputs({paddle::Vec("Matrices")})
    .Outputs({paddle::Vec("Results")})
    .SetInplaceMap({{paddle::Vec("Matrices"), paddle::Vec("Results")}})
    .SetKernelFn(PD_KERNEL(OrthogonalizeAll));
