// Calls a handler as XLA would, with the structs of the header that comes with jaxlib. A shared
// library for device_calls.py.

#include <cstdint>
#include <string>
#include <vector>

#include "xla/ffi/api/c_api.h"

struct XLA_FFI_Error {
  std::string message;
  XLA_FFI_Error_Code code;
};

// What a handler sees as the call's context: the stream, if there is one.
struct XLA_FFI_ExecutionContext {
  void* stream;
};

namespace {

int live_errors = 0;

XLA_FFI_Error* error_create(XLA_FFI_Error_Create_Args* args) {
  ++live_errors;
  return new XLA_FFI_Error{args->message, args->errc};
}

void error_get_message(XLA_FFI_Error_GetMessage_Args* args) {
  args->message = args->error->message.c_str();
}

void error_destroy(XLA_FFI_Error_Destroy_Args* args) {
  --live_errors;
  delete args->error;
}

XLA_FFI_Error* stream_get(XLA_FFI_Stream_Get_Args* args) {
  if (args->ctx->stream == nullptr) {
    ++live_errors;
    return new XLA_FFI_Error{"no GPU stream here", XLA_FFI_Error_Code_UNIMPLEMENTED};
  }
  args->stream = args->ctx->stream;
  return nullptr;
}

XLA_FFI_Api make_api() {
  XLA_FFI_Api api{};
  api.struct_size = XLA_FFI_Api_STRUCT_SIZE;
  api.api_version = {XLA_FFI_Api_Version_STRUCT_SIZE, nullptr, XLA_FFI_API_MAJOR,
                     XLA_FFI_API_MINOR};
  api.XLA_FFI_Error_Create = error_create;
  api.XLA_FFI_Error_GetMessage = error_get_message;
  api.XLA_FFI_Error_Destroy = error_destroy;
  api.XLA_FFI_Stream_Get = stream_get;
  return api;
}

}  // namespace

extern "C" {

// The errors that nobody has destroyed.
int frames_live_errors() { return live_errors; }

// API version and traits of a handler, as XLA asks for them when it is registered.
void frames_metadata(XLA_FFI_Handler* handler, int* version, uint32_t* traits) {
  XLA_FFI_Metadata metadata{};
  metadata.struct_size = XLA_FFI_Metadata_STRUCT_SIZE;
  metadata.api_version.struct_size = XLA_FFI_Api_Version_STRUCT_SIZE;
  XLA_FFI_Metadata_Extension extension{};
  extension.extension_base = {XLA_FFI_Metadata_Extension_STRUCT_SIZE, XLA_FFI_Extension_Metadata,
                              nullptr};
  extension.metadata = &metadata;
  XLA_FFI_CallFrame frame{};
  frame.struct_size = XLA_FFI_CallFrame_STRUCT_SIZE;
  frame.extension_start = &extension.extension_base;
  handler(&frame);
  version[0] = metadata.api_version.major_version;
  version[1] = metadata.api_version.minor_version;
  *traits = metadata.traits;
}

// One call. Returns the error's code, 0 for none, with its text in `message`.
int frames_call(XLA_FFI_Handler* handler, int stage, void* stream, XLA_FFI_Buffer** operands,
                int64_t operand_count, XLA_FFI_Buffer** results, int64_t result_count,
                const char* plan, const char* output, int32_t nonfinite, char* message,
                size_t capacity) {
  static const XLA_FFI_Api api = make_api();
  std::string names[] = {"nonfinite", "output", "plan"}, plan_text = plan, output_text = output;
  XLA_FFI_ByteSpan spans[3], *span_pointers[3];
  for (int i = 0; i < 3; ++i) {
    spans[i] = {names[i].data(), names[i].size()};
    span_pointers[i] = &spans[i];
  }
  XLA_FFI_Scalar scalar{XLA_FFI_DataType_S32, &nonfinite};
  XLA_FFI_ByteSpan output_span{output_text.data(), output_text.size()};
  XLA_FFI_ByteSpan plan_span{plan_text.data(), plan_text.size()};
  XLA_FFI_AttrType attr_types[] = {XLA_FFI_AttrType_SCALAR, XLA_FFI_AttrType_STRING,
                                   XLA_FFI_AttrType_STRING};
  void* attrs[] = {&scalar, &output_span, &plan_span};

  std::vector<XLA_FFI_ArgType> operand_types(static_cast<size_t>(operand_count),
                                             XLA_FFI_ArgType_BUFFER);
  std::vector<XLA_FFI_RetType> result_types(static_cast<size_t>(result_count),
                                            XLA_FFI_RetType_BUFFER);
  XLA_FFI_ExecutionContext context{stream};
  XLA_FFI_CallFrame frame{};
  frame.struct_size = XLA_FFI_CallFrame_STRUCT_SIZE;
  frame.api = &api;
  frame.ctx = &context;
  frame.stage = static_cast<XLA_FFI_ExecutionStage>(stage);
  frame.args = {XLA_FFI_Args_STRUCT_SIZE, nullptr, operand_count,
                operand_types.data(), reinterpret_cast<void**>(operands)};
  frame.rets = {XLA_FFI_Rets_STRUCT_SIZE, nullptr, result_count,
                result_types.data(), reinterpret_cast<void**>(results)};
  frame.attrs = {XLA_FFI_Attrs_STRUCT_SIZE, nullptr, 3, attr_types, span_pointers, attrs};
  XLA_FFI_Error* error = handler(&frame);
  if (error == nullptr) {
    return 0;
  }
  const int code = error->code;
  error->message.copy(message, capacity - 1);
  message[error->message.size() < capacity ? error->message.size() : capacity - 1] = '\0';
  --live_errors;
  delete error;
  return code;
}

}  // extern "C"
