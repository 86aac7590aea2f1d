// The few C functions of oneDNN 3 that the engine calls, declared here, and a thin layer that owns their handles.
//
// Paddle's wheel ships the library but not its headers. The C interface is stable within a major version (checked
// in `Engine()`), so these declarations replace a package that a user would need at build time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

extern "C" {
typedef struct dnnl_engine* dnnl_engine_t;
typedef struct dnnl_stream* dnnl_stream_t;
typedef struct dnnl_memory* dnnl_memory_t;
typedef struct dnnl_memory_desc* dnnl_memory_desc_t;
typedef struct dnnl_primitive_desc* dnnl_primitive_desc_t;
typedef struct dnnl_primitive* dnnl_primitive_t;
typedef struct dnnl_primitive_attr* dnnl_primitive_attr_t;
typedef struct dnnl_post_ops* dnnl_post_ops_t;
typedef struct {
  int index;
  dnnl_memory_t memory;
} dnnl_exec_arg_t;
typedef struct {
  int major, minor, patch;
} dnnl_version_t;  // More fields follow; only a pointer to it is ever used.

const dnnl_version_t* dnnl_version(void);
int dnnl_engine_create(dnnl_engine_t*, int kind, size_t index);
int dnnl_stream_create(dnnl_stream_t*, dnnl_engine_t, unsigned flags);
int dnnl_memory_desc_create_with_strides(dnnl_memory_desc_t*, int rank, const int64_t* dims, int type,
                                         const int64_t* strides);
int dnnl_memory_desc_create_with_tag(dnnl_memory_desc_t*, int rank, const int64_t* dims, int type, int tag);
int dnnl_memory_desc_destroy(dnnl_memory_desc_t);
size_t dnnl_memory_desc_get_size(const struct dnnl_memory_desc*);
int dnnl_memory_create(dnnl_memory_t*, const struct dnnl_memory_desc*, dnnl_engine_t, void* data);
int dnnl_memory_destroy(dnnl_memory_t);
int dnnl_post_ops_create(dnnl_post_ops_t*);
int dnnl_post_ops_append_eltwise(dnnl_post_ops_t, int algorithm, float alpha, float beta);
int dnnl_post_ops_destroy(dnnl_post_ops_t);
int dnnl_primitive_attr_create(dnnl_primitive_attr_t*);
int dnnl_primitive_attr_set_scratchpad_mode(dnnl_primitive_attr_t, int mode);
int dnnl_primitive_attr_set_post_ops(dnnl_primitive_attr_t, const struct dnnl_post_ops*);
int dnnl_primitive_attr_destroy(dnnl_primitive_attr_t);
int dnnl_convolution_forward_primitive_desc_create(
    dnnl_primitive_desc_t*, dnnl_engine_t, int propagation, int algorithm, const struct dnnl_memory_desc* src,
    const struct dnnl_memory_desc* weights, const struct dnnl_memory_desc* bias, const struct dnnl_memory_desc* dst,
    const int64_t* strides, const int64_t* dilates, const int64_t* padding_begin,
    const int64_t* padding_end, const struct dnnl_primitive_attr*);
int dnnl_convolution_backward_data_primitive_desc_create(
    dnnl_primitive_desc_t*, dnnl_engine_t, int algorithm, const struct dnnl_memory_desc* diff_src,
    const struct dnnl_memory_desc* weights, const struct dnnl_memory_desc* diff_dst, const int64_t* strides,
    const int64_t* dilates, const int64_t* padding_begin, const int64_t* padding_end,
    const struct dnnl_primitive_desc* forward, const struct dnnl_primitive_attr*);
int dnnl_convolution_backward_weights_primitive_desc_create(
    dnnl_primitive_desc_t*, dnnl_engine_t, int algorithm, const struct dnnl_memory_desc* src,
    const struct dnnl_memory_desc* diff_weights, const struct dnnl_memory_desc* diff_bias,
    const struct dnnl_memory_desc* diff_dst, const int64_t* strides, const int64_t* dilates,
    const int64_t* padding_begin, const int64_t* padding_end, const struct dnnl_primitive_desc* forward,
    const struct dnnl_primitive_attr*);
int dnnl_reorder_primitive_desc_create(dnnl_primitive_desc_t*, const struct dnnl_memory_desc* from, dnnl_engine_t,
                                       const struct dnnl_memory_desc* to, dnnl_engine_t,
                                       const struct dnnl_primitive_attr*);
const struct dnnl_memory_desc* dnnl_primitive_desc_query_md(const struct dnnl_primitive_desc*, int what, int index);
int dnnl_primitive_desc_destroy(dnnl_primitive_desc_t);
int dnnl_primitive_create(dnnl_primitive_t*, const struct dnnl_primitive_desc*);
int dnnl_primitive_execute(const struct dnnl_primitive*, dnnl_stream_t, int count, const dnnl_exec_arg_t*);
int dnnl_primitive_destroy(dnnl_primitive_t);
int dnnl_sgemm(char turn_a, char turn_b, int64_t m, int64_t n, int64_t k, float alpha, const float* a, int64_t lda,
               const float* b, int64_t ldb, float beta, float* c, int64_t ldc);
}

namespace onednn {

// Values of the enumerations of oneDNN 3 (dnnl_types.h).
enum Type { kBf16 = 2, kF32 = 3 };
enum Query { kSrc = 129, kDiffSrc, kWeights, kDiffWeights, kDst, kDiffDst, kWorkspace, kScratchpad };
enum Argument {
  kArgSrc = 1,
  kArgDst = 17,
  kArgWeights = 33,
  kArgBias = 41,
  kArgScratchpad = 80,
  kArgDiffSrc = 129,
  kArgDiffDst = 145,
  kArgDiffWeights = 161,
  kArgDiffBias = 169,
};
constexpr int kCpu = 1, kInOrder = 1, kTagAny = 1, kForwardTraining = 64, kForwardInference = 96;
constexpr int kConvolutionDirect = 1, kEltwiseRelu = 0x20, kScratchpadByUser = 1;

inline void Check(int status, const char* what) {
  if (status != 0) throw std::runtime_error(std::string("oneDNN: ") + what + " failed with " + std::to_string(status));
}

inline dnnl_engine_t Engine() {
  static dnnl_engine_t engine = [] {
    if (dnnl_version()->major != 3) throw std::runtime_error("The engine needs oneDNN 3.");
    dnnl_engine_t created;
    Check(dnnl_engine_create(&created, kCpu, 0), "the engine");
    return created;
  }();
  return engine;
}

inline dnnl_stream_t Stream() {
  static dnnl_stream_t stream = [] {
    dnnl_stream_t created;
    Check(dnnl_stream_create(&created, Engine(), kInOrder), "the stream");
    return created;
  }();
  return stream;
}

using Dims = std::vector<int64_t>;
using Desc = std::shared_ptr<const struct dnnl_memory_desc>;

// A layout by its strides, or, without strides, whichever the primitive likes best.
inline Desc MakeDesc(const Dims& dims, Type type, const Dims& strides = {}) {
  dnnl_memory_desc_t desc;
  int status = strides.empty()
                   ? dnnl_memory_desc_create_with_tag(&desc, dims.size(), dims.data(), type, kTagAny)
                   : dnnl_memory_desc_create_with_strides(&desc, dims.size(), dims.data(), type, strides.data());
  Check(status, "describing a layout");
  return Desc(desc, [](const struct dnnl_memory_desc* d) {
    dnnl_memory_desc_destroy(const_cast<dnnl_memory_desc_t>(d));
  });
}

// What a primitive is told besides its layouts: an activation after it, and scratch memory from our pool.
class Attributes {
 public:
  explicit Attributes(float slope = 1.0f) {
    Check(dnnl_primitive_attr_create(&handle_), "the attributes");
    Check(dnnl_primitive_attr_set_scratchpad_mode(handle_, kScratchpadByUser), "the scratchpad mode");
    if (slope == 1.0f) return;
    dnnl_post_ops_t after;
    Check(dnnl_post_ops_create(&after), "the activation");
    Check(dnnl_post_ops_append_eltwise(after, kEltwiseRelu, slope, 0.0f), "the activation");
    Check(dnnl_primitive_attr_set_post_ops(handle_, after), "the activation");
    dnnl_post_ops_destroy(after);
  }
  ~Attributes() { dnnl_primitive_attr_destroy(handle_); }
  Attributes(const Attributes&) = delete;
  operator dnnl_primitive_attr_t() const { return handle_; }

 private:
  dnnl_primitive_attr_t handle_;
};

// A compiled operation that runs on plain pointers.
class Primitive {
 public:
  explicit Primitive(dnnl_primitive_desc_t description) : description_(description) {
    Check(dnnl_primitive_create(&handle_, description), "compiling a primitive");
  }
  ~Primitive() {
    dnnl_primitive_destroy(handle_);
    dnnl_primitive_desc_destroy(description_);
  }
  Primitive(const Primitive&) = delete;

  const struct dnnl_primitive_desc* Description() const { return description_; }
  const struct dnnl_memory_desc* Layout(Query what) const {
    return dnnl_primitive_desc_query_md(description_, what, 0);
  }
  size_t Bytes(Query what) const { return dnnl_memory_desc_get_size(Layout(what)); }

  struct Operand {
    Argument index;
    const struct dnnl_memory_desc* layout;
    const void* data;
  };
  void Run(const std::vector<Operand>& operands) const {
    std::vector<dnnl_exec_arg_t> arguments;
    for (const Operand& operand : operands) {
      dnnl_memory_t memory;
      Check(dnnl_memory_create(&memory, operand.layout, Engine(), const_cast<void*>(operand.data)), "an operand");
      arguments.push_back({operand.index, memory});
    }
    int status = dnnl_primitive_execute(handle_, Stream(), arguments.size(), arguments.data());
    for (const dnnl_exec_arg_t& argument : arguments) dnnl_memory_destroy(argument.memory);
    Check(status, "running a primitive");
  }

 private:
  dnnl_primitive_desc_t description_;
  dnnl_primitive_t handle_;
};

}  // namespace onednn
