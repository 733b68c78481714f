"""The C ABI for ctypes. Generated from include/lowbit.h by bindings/generate.py."""

from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    c_char,
    c_char_p,
    c_float,
    c_int32,
    c_int64,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
    sizeof,
)

LOWBIT_HYPER_COUNT = 8
LOWBIT_QUANTIZER_SCALE_CORRECTION = 1
LOWBIT_QUANTIZER_DITHER = 2
LOWBIT_SPEC_THRESHOLD = 1
LOWBIT_SPEC_AMSGRAD = 2
LOWBIT_SPEC_MAXIMIZE = 4
LOWBIT_SPEC_NESTEROV = 8
LOWBIT_SPEC_DECOUPLED = 16
LOWBIT_ADAFACTOR_RELATIVE_STEP = 1
LOWBIT_ADAFACTOR_SCALE_PARAMETER = 2
LOWBIT_STEP_COUNTED = 1
LOWBIT_NORM_SCRATCH = 24
LOWBIT_SAVE_FD = 1
LOWBIT_LOAD_FD = 1
LOWBIT_LOAD_SUBSET = 2
LOWBIT_ABI_MAJOR = 0
LOWBIT_ABI_MINOR = 1
LOWBIT_STATUS_OK = 0
LOWBIT_STATUS_NULL_POINTER = 1
LOWBIT_STATUS_INVALID_ARGUMENT = 2
LOWBIT_STATUS_STRUCT_SIZE = 3
LOWBIT_STATUS_UNKNOWN_FLAG = 4
LOWBIT_STATUS_BUFFER_SIZE = 5
LOWBIT_STATUS_MISALIGNED = 6
LOWBIT_STATUS_OVERLAP = 7
LOWBIT_STATUS_UNSUPPORTED = 20
LOWBIT_STATUS_FORMAT_MAGIC = 40
LOWBIT_STATUS_FORMAT_VERSION = 41
LOWBIT_STATUS_FORMAT_TRUNCATED = 42
LOWBIT_STATUS_FORMAT_CORRUPT = 43
LOWBIT_STATUS_FORMAT_MISMATCH = 44
LOWBIT_STATUS_CUDA_UNAVAILABLE = 60
LOWBIT_STATUS_CUDA_OUT_OF_MEMORY = 62
LOWBIT_STATUS_CUDA_ERROR = 63
LOWBIT_STATUS_OUT_OF_MEMORY = 80
LOWBIT_STATUS_IO = 81
LOWBIT_STATUS_CANCELLED = 82
LOWBIT_STATUS_INTERNAL = 100
LOWBIT_DTYPE_F32 = 1
LOWBIT_DTYPE_BF16 = 2
LOWBIT_DTYPE_F16 = 3
LOWBIT_DTYPE_U8 = 4
LOWBIT_DTYPE_I32 = 5
LOWBIT_DTYPE_I64 = 6
LOWBIT_DTYPE_U16 = 7
LOWBIT_DTYPE_I8 = 8
LOWBIT_OPTIMIZER_ADAMW = 1
LOWBIT_OPTIMIZER_NONE = 2
LOWBIT_OPTIMIZER_ADAM = 3
LOWBIT_OPTIMIZER_SGDM = 4
LOWBIT_OPTIMIZER_LION = 5
LOWBIT_OPTIMIZER_ADAFACTOR = 6
LOWBIT_OPTIMIZER_SM3 = 7
LOWBIT_NORMALIZATION_BLOCK = 1
LOWBIT_NORMALIZATION_RANK1 = 2
LOWBIT_NORMALIZATION_TENSOR = 3
LOWBIT_NORMALIZATION_ROW = 4
LOWBIT_NORMALIZATION_COLUMN = 5
LOWBIT_NORMALIZATION_FACTORED = 6
LOWBIT_MAPPING_DE = 1
LOWBIT_MAPPING_LINEAR = 2
LOWBIT_MAPPING_DE0 = 3
LOWBIT_MAPPING_LINEAR_WITH_ZERO = 4
LOWBIT_MAPPING_POWER2 = 5
LOWBIT_MAPPING_POWER3 = 6
LOWBIT_MAPPING_NF4 = 7
LOWBIT_MAPPING_GEOMETRIC = 8
LOWBIT_MAPPING_TABLE = 9
LOWBIT_ROUNDING_NEAREST = 0
LOWBIT_ROUNDING_STOCHASTIC = 1
LOWBIT_ROUNDING_STOCHASTIC_LOG = 2
LOWBIT_ROUNDING_STOCHASTIC_PRECONDITIONER = 3
LOWBIT_FACTOR_AXES_MERGED = 0
LOWBIT_FACTOR_AXES_LAST_TWO = 1
LOWBIT_FACTOR_AXES_LARGEST_TWO = 2
LOWBIT_WEIGHTS_PLAIN = 0
LOWBIT_WEIGHTS_STOCHASTIC = 1
LOWBIT_WEIGHTS_MASTER = 2
LOWBIT_WEIGHTS_REMAINDER16 = 3
LOWBIT_WEIGHTS_CORRECTION8 = 4
LOWBIT_CPU_VARIANT_AUTO = 0
LOWBIT_CPU_VARIANT_REFERENCE = 1
LOWBIT_CPU_VARIANT_PORTABLE = 2
LOWBIT_CPU_VARIANT_AVX2 = 3
LOWBIT_CPU_VARIANT_AVX512 = 4
LOWBIT_NONFINITE_DEFAULT = 0
LOWBIT_NONFINITE_SKIP_BLOCK = 1
LOWBIT_NONFINITE_SKIP_TENSOR = 2
LOWBIT_NONFINITE_SKIP_STEP = 3
LOWBIT_NONFINITE_PROPAGATE = 4
LOWBIT_REDUCE_MAX = 1
LOWBIT_REDUCE_SUM = 2
LOWBIT_REPORT_TABLE = 0
LOWBIT_REPORT_JSON = 1


class Sized(Structure):
    """A struct that begins with its own size."""

    _init_ = {}

    @classmethod
    def init(cls, **fields):
        """As the struct's INIT macro sets it, with `fields` on top."""
        return cls(**{"struct_size": sizeof(cls), **cls._init_, **fields})


class lowbit_context_t(Structure):
    """Opaque."""


class lowbit_offload_t(Structure):
    """Opaque."""


class lowbit_plan_t(Structure):
    """Opaque."""


class lowbit_report_t(Structure):
    """Opaque."""


class lowbit_spec_t(Structure):
    """Opaque."""


class lowbit_state_t(Structure):
    """Opaque."""


lowbit_status_t = c_int32
lowbit_optimizer_t = c_int32
lowbit_normalization_t = c_int32
lowbit_mapping_t = c_int32
lowbit_rounding_t = c_int32
lowbit_factor_axes_t = c_int32


class lowbit_quantizer_info_t(Sized):
    _fields_ = [
        ("struct_size", c_size_t),
        ("bits", c_int32),
        ("normalization", lowbit_normalization_t),
        ("mapping", lowbit_mapping_t),
        ("rounding", lowbit_rounding_t),
        ("block", c_int64),
        ("flags", c_uint64),
        ("levels", POINTER(c_float)),
        ("level_count", c_int64),
        ("factor_axes", lowbit_factor_axes_t),
        ("reserved", c_int32),
    ]
    _init_ = {
        "bits": 4,
        "normalization": LOWBIT_NORMALIZATION_BLOCK,
        "mapping": LOWBIT_MAPPING_DE,
        "rounding": LOWBIT_ROUNDING_NEAREST,
        "block": 128,
    }


class lowbit_override_info_t(Sized):
    _fields_ = [
        ("struct_size", c_size_t),
        ("pattern", c_char_p),
        ("m", POINTER(lowbit_quantizer_info_t)),
        ("v", POINTER(lowbit_quantizer_info_t)),
        ("x", POINTER(lowbit_quantizer_info_t)),
    ]


class lowbit_adafactor_info_t(Sized):
    _fields_ = [
        ("struct_size", c_size_t),
        ("flags", c_uint64),
        ("clip_threshold", c_float),
        ("decay_rate", c_float),
        ("eps2", c_float),
        ("reserved", c_int32),
    ]
    _init_ = {
        "flags": LOWBIT_ADAFACTOR_RELATIVE_STEP | LOWBIT_ADAFACTOR_SCALE_PARAMETER,
        "clip_threshold": 1.0,
        "decay_rate": 0.8,
        "eps2": 1e-3,
    }


class lowbit_spec_info_t(Sized):
    _fields_ = [
        ("struct_size", c_size_t),
        ("flags", c_uint64),
        ("preset", c_char_p),
        ("optimizer", lowbit_optimizer_t),
        ("reserved", c_int32),
        ("threshold", c_int64),
        ("m", POINTER(lowbit_quantizer_info_t)),
        ("v", POINTER(lowbit_quantizer_info_t)),
        ("x", POINTER(lowbit_quantizer_info_t)),
        ("overrides", POINTER(lowbit_override_info_t)),
        ("override_count", c_int64),
        ("seed", c_uint64),
        ("dampening", c_float),
        ("reserved2", c_int32),
        ("adafactor", POINTER(lowbit_adafactor_info_t)),
    ]


lowbit_cpu_variant_t = c_int32
lowbit_parallel_for_t = CFUNCTYPE(None, c_void_p, c_int64, CFUNCTYPE(None, c_void_p, c_int64), c_void_p)


class lowbit_cpu_info_t(Sized):
    _fields_ = [
        ("struct_size", c_size_t),
        ("flags", c_uint64),
        ("threads", c_int64),
        ("variant", lowbit_cpu_variant_t),
        ("reserved", c_int32),
        ("parallel_for", lowbit_parallel_for_t),
        ("parallel_for_user", c_void_p),
    ]
    _init_ = {"variant": LOWBIT_CPU_VARIANT_AUTO}


class lowbit_cuda_info_t(Sized):
    _fields_ = [
        ("struct_size", c_size_t),
        ("flags", c_uint64),
        ("device", c_int32),
        ("reserved", c_int32),
    ]


lowbit_dtype_t = c_int32
lowbit_weights_t = c_int32


class lowbit_tensor_info_t(Sized):
    _fields_ = [
        ("struct_size", c_size_t),
        ("flags", c_uint64),
        ("name", c_char_p),
        ("shape", POINTER(c_int64)),
        ("ndim", c_int32),
        ("param_dtype", lowbit_dtype_t),
        ("grad_dtype", lowbit_dtype_t),
        ("weights", lowbit_weights_t),
        ("global_shape", POINTER(c_int64)),
        ("offset", POINTER(c_int64)),
        ("group", c_int64),
    ]
    _init_ = {"param_dtype": LOWBIT_DTYPE_F32, "weights": LOWBIT_WEIGHTS_PLAIN}


class lowbit_plan_info_t(Sized):
    _fields_ = [
        ("struct_size", c_size_t),
        ("tensor_count", c_int64),
        ("buffer_count", c_int64),
        ("state_bytes", c_int64),
        ("arena_bytes", c_int64),
        ("arena_align", c_int64),
        ("scratch_bytes", c_int64),
        ("stage_count", c_int64),
        ("group_count", c_int64),
    ]


class lowbit_tensor_report_t(Sized):
    _fields_ = [
        ("struct_size", c_size_t),
        ("name", c_char_p),
        ("quantizers", c_char_p),
        ("reason", c_char_p),
        ("numel", c_int64),
        ("state_bytes", c_int64),
        ("first_buffer", c_int64),
        ("buffer_count", c_int64),
    ]


class lowbit_buffer_info_t(Sized):
    _fields_ = [
        ("struct_size", c_size_t),
        ("tensor", c_int64),
        ("state", c_char_p),
        ("part", c_char_p),
        ("dtype", lowbit_dtype_t),
        ("ndim", c_int32),
        ("shape", POINTER(c_int64)),
        ("bytes", c_int64),
        ("arena_offset", c_int64),
    ]


lowbit_reduce_t = c_int32


class lowbit_stage_info_t(Sized):
    _fields_ = [
        ("struct_size", c_size_t),
        ("dtype", lowbit_dtype_t),
        ("reduce", lowbit_reduce_t),
        ("offset", c_int64),
        ("count", c_int64),
    ]


class lowbit_buffer_t(Structure):
    _fields_ = [
        ("data", c_void_p),
        ("bytes", c_int64),
    ]


lowbit_nonfinite_t = c_int32


class lowbit_step_args_t(Sized):
    _fields_ = [
        ("struct_size", c_size_t),
        ("flags", c_uint64),
        ("tensor_count", c_int64),
        ("params", POINTER(lowbit_buffer_t)),
        ("grads", POINTER(lowbit_buffer_t)),
        ("updates", POINTER(lowbit_buffer_t)),
        ("buffer_count", c_int64),
        ("state", POINTER(lowbit_buffer_t)),
        ("scratch", lowbit_buffer_t),
        ("lr", c_float),
        ("beta1", c_float),
        ("beta2", c_float),
        ("eps", c_float),
        ("weight_decay", c_float),
        ("grad_scale", c_float),
        ("clip_factor", c_float),
        ("skip", c_float),
        ("step", c_int32),
        ("nonfinite", lowbit_nonfinite_t),
        ("hyper", POINTER(c_float)),
        ("step_number", POINTER(c_int32)),
        ("offsets", POINTER(POINTER(c_int64))),
        ("skipped", POINTER(c_int64)),
    ]
    _init_ = {
        "lr": 1e-3,
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.01,
        "grad_scale": 1.0,
        "clip_factor": 1.0,
        "step": 1,
        "nonfinite": LOWBIT_NONFINITE_DEFAULT,
    }


class lowbit_offload_info_t(Sized):
    _fields_ = [
        ("struct_size", c_size_t),
        ("on_host", c_int32),
        ("reserved", c_int32),
        ("chunk_count", c_int64),
        ("staging_bytes", c_int64),
        ("host_bytes", c_int64),
        ("bytes_to_device", c_int64),
        ("bytes_to_host", c_int64),
        ("stepped", c_int64),
    ]


class lowbit_norm_args_t(Sized):
    _fields_ = [
        ("struct_size", c_size_t),
        ("flags", c_uint64),
        ("tensor_count", c_int64),
        ("grads", POINTER(lowbit_buffer_t)),
        ("scratch", lowbit_buffer_t),
        ("grad_scale", c_float),
        ("max_norm", c_float),
    ]
    _init_ = {"grad_scale": 1.0, "max_norm": 1.0}


lowbit_report_format_t = c_int32


class lowbit_ema_args_t(Sized):
    _fields_ = [
        ("struct_size", c_size_t),
        ("flags", c_uint64),
        ("state_name", c_char_p),
        ("tensor_count", c_int64),
        ("inputs", POINTER(lowbit_buffer_t)),
        ("outputs", POINTER(lowbit_buffer_t)),
        ("buffer_count", c_int64),
        ("state", POINTER(lowbit_buffer_t)),
        ("decay", c_float),
        ("weight", c_float),
        ("step", c_int32),
        ("reserved", c_int32),
    ]
    _init_ = {"decay": 0.9, "weight": 0.1, "step": 1}


class lowbit_checkpoint_info_t(Sized):
    _fields_ = [
        ("struct_size", c_size_t),
        ("step", c_int64),
    ]


lowbit_write_t = CFUNCTYPE(c_int32, c_void_p, c_void_p, c_size_t)
lowbit_progress_t = CFUNCTYPE(c_int32, c_void_p, c_int64, c_int64)


class lowbit_save_args_t(Sized):
    _fields_ = [
        ("struct_size", c_size_t),
        ("flags", c_uint64),
        ("buffer_count", c_int64),
        ("state", POINTER(lowbit_buffer_t)),
        ("step", c_int64),
        ("path", c_char_p),
        ("write", lowbit_write_t),
        ("write_user", c_void_p),
        ("fd", c_int32),
        ("keep", c_int32),
        ("progress", lowbit_progress_t),
        ("progress_user", c_void_p),
    ]


lowbit_read_t = CFUNCTYPE(c_int32, c_void_p, c_int64, c_void_p, c_size_t)


class lowbit_load_args_t(Sized):
    _fields_ = [
        ("struct_size", c_size_t),
        ("flags", c_uint64),
        ("buffer_count", c_int64),
        ("state", POINTER(lowbit_buffer_t)),
        ("path", c_char_p),
        ("read", lowbit_read_t),
        ("read_user", c_void_p),
        ("bytes", c_int64),
        ("fd", c_int32),
        ("reserved", c_int32),
        ("progress", lowbit_progress_t),
        ("progress_user", c_void_p),
    ]


#: name -> (return type, argument types)
FUNCTIONS = {
    "lowbit_abi_version": (
        lowbit_status_t,
        (POINTER(c_uint32), POINTER(c_uint32)),
    ),
    "lowbit_version": (
        c_char_p,
        (),
    ),
    "lowbit_status_name": (
        c_char_p,
        (lowbit_status_t,),
    ),
    "lowbit_last_error": (
        lowbit_status_t,
        (POINTER(c_char), c_size_t, POINTER(c_size_t)),
    ),
    "lowbit_spec_create_preset": (
        lowbit_status_t,
        (c_char_p, POINTER(POINTER(lowbit_spec_t))),
    ),
    "lowbit_spec_create_json": (
        lowbit_status_t,
        (c_char_p, POINTER(POINTER(lowbit_spec_t))),
    ),
    "lowbit_spec_create": (
        lowbit_status_t,
        (POINTER(lowbit_spec_info_t), POINTER(POINTER(lowbit_spec_t))),
    ),
    "lowbit_spec_json": (
        lowbit_status_t,
        (POINTER(lowbit_spec_t), POINTER(c_char), c_size_t, POINTER(c_size_t)),
    ),
    "lowbit_spec_destroy": (
        None,
        (POINTER(lowbit_spec_t),),
    ),
    "lowbit_context_create_cpu": (
        lowbit_status_t,
        (POINTER(lowbit_cpu_info_t), POINTER(POINTER(lowbit_context_t))),
    ),
    "lowbit_context_create_cuda": (
        lowbit_status_t,
        (POINTER(lowbit_cuda_info_t), POINTER(POINTER(lowbit_context_t))),
    ),
    "lowbit_cuda_probe": (
        lowbit_status_t,
        (c_int32, POINTER(c_char), c_size_t, POINTER(c_size_t)),
    ),
    "lowbit_context_destroy": (
        None,
        (POINTER(lowbit_context_t),),
    ),
    "lowbit_plan_create": (
        lowbit_status_t,
        (
            POINTER(lowbit_context_t),
            POINTER(lowbit_spec_t),
            POINTER(lowbit_tensor_info_t),
            c_int64,
            POINTER(POINTER(lowbit_plan_t)),
        ),
    ),
    "lowbit_plan_info": (
        lowbit_status_t,
        (POINTER(lowbit_plan_t), POINTER(lowbit_plan_info_t)),
    ),
    "lowbit_plan_tensor": (
        lowbit_status_t,
        (POINTER(lowbit_plan_t), c_int64, POINTER(lowbit_tensor_report_t)),
    ),
    "lowbit_plan_buffer": (
        lowbit_status_t,
        (POINTER(lowbit_plan_t), c_int64, POINTER(lowbit_buffer_info_t)),
    ),
    "lowbit_plan_stage": (
        lowbit_status_t,
        (POINTER(lowbit_plan_t), c_int64, POINTER(lowbit_stage_info_t)),
    ),
    "lowbit_plan_report": (
        lowbit_status_t,
        (POINTER(lowbit_plan_t), POINTER(c_char), c_size_t, POINTER(c_size_t)),
    ),
    "lowbit_plan_destroy": (
        None,
        (POINTER(lowbit_plan_t),),
    ),
    "lowbit_state_create": (
        lowbit_status_t,
        (POINTER(lowbit_plan_t), c_void_p, POINTER(POINTER(lowbit_state_t))),
    ),
    "lowbit_state_buffers": (
        lowbit_status_t,
        (POINTER(lowbit_state_t), POINTER(lowbit_buffer_t), c_int64),
    ),
    "lowbit_state_destroy": (
        None,
        (POINTER(lowbit_state_t), c_void_p),
    ),
    "lowbit_step": (
        lowbit_status_t,
        (POINTER(lowbit_plan_t), POINTER(lowbit_step_args_t), c_void_p),
    ),
    "lowbit_step_stats": (
        lowbit_status_t,
        (POINTER(lowbit_plan_t), POINTER(lowbit_step_args_t), c_int64, c_void_p),
    ),
    "lowbit_step_apply": (
        lowbit_status_t,
        (POINTER(lowbit_plan_t), POINTER(lowbit_step_args_t), c_void_p),
    ),
    "lowbit_offload_create": (
        lowbit_status_t,
        (
            POINTER(lowbit_plan_t),
            POINTER(lowbit_context_t),
            c_int64,
            POINTER(POINTER(lowbit_offload_t)),
        ),
    ),
    "lowbit_offload_info": (
        lowbit_status_t,
        (POINTER(lowbit_offload_t), POINTER(lowbit_offload_info_t)),
    ),
    "lowbit_offload_buffers": (
        lowbit_status_t,
        (
            POINTER(lowbit_offload_t),
            POINTER(lowbit_buffer_t),
            c_int64,
            POINTER(lowbit_buffer_t),
            c_int64,
        ),
    ),
    "lowbit_offload_step": (
        lowbit_status_t,
        (POINTER(lowbit_offload_t), POINTER(lowbit_step_args_t), c_void_p),
    ),
    "lowbit_offload_destroy": (
        None,
        (POINTER(lowbit_offload_t),),
    ),
    "lowbit_norm": (
        lowbit_status_t,
        (
            POINTER(lowbit_plan_t),
            POINTER(lowbit_norm_args_t),
            c_void_p,
            POINTER(c_float),
            POINTER(c_float),
        ),
    ),
    "lowbit_norm_stats": (
        lowbit_status_t,
        (POINTER(lowbit_plan_t), POINTER(lowbit_norm_args_t), c_int64, c_void_p),
    ),
    "lowbit_norm_finish": (
        lowbit_status_t,
        (
            POINTER(lowbit_plan_t),
            POINTER(lowbit_norm_args_t),
            POINTER(c_float),
            POINTER(c_float),
        ),
    ),
    "lowbit_norm_clip": (
        lowbit_status_t,
        (
            POINTER(lowbit_plan_t),
            POINTER(lowbit_norm_args_t),
            c_void_p,
            POINTER(c_float),
            POINTER(c_float),
        ),
    ),
    "lowbit_norm_stage": (
        lowbit_status_t,
        (POINTER(lowbit_plan_t), c_int64, POINTER(lowbit_stage_info_t)),
    ),
    "lowbit_report_create": (
        lowbit_status_t,
        (
            POINTER(lowbit_plan_t),
            POINTER(lowbit_step_args_t),
            POINTER(POINTER(lowbit_report_t)),
        ),
    ),
    "lowbit_report_text": (
        lowbit_status_t,
        (
            POINTER(lowbit_report_t),
            lowbit_report_format_t,
            POINTER(c_char),
            c_size_t,
            POINTER(c_size_t),
        ),
    ),
    "lowbit_report_destroy": (
        None,
        (POINTER(lowbit_report_t),),
    ),
    "lowbit_compress": (
        lowbit_status_t,
        (
            POINTER(lowbit_plan_t),
            c_char_p,
            POINTER(lowbit_buffer_t),
            c_int64,
            POINTER(lowbit_buffer_t),
            c_int64,
            c_void_p,
        ),
    ),
    "lowbit_decompress": (
        lowbit_status_t,
        (
            POINTER(lowbit_plan_t),
            c_char_p,
            POINTER(lowbit_buffer_t),
            c_int64,
            POINTER(lowbit_buffer_t),
            c_int64,
            c_void_p,
        ),
    ),
    "lowbit_ema": (
        lowbit_status_t,
        (POINTER(lowbit_plan_t), POINTER(lowbit_ema_args_t), c_void_p),
    ),
    "lowbit_convert": (
        lowbit_status_t,
        (
            POINTER(lowbit_plan_t),
            POINTER(lowbit_buffer_t),
            c_int64,
            POINTER(lowbit_plan_t),
            POINTER(lowbit_buffer_t),
            c_int64,
        ),
    ),
    "lowbit_checkpoint_save": (
        lowbit_status_t,
        (
            POINTER(lowbit_plan_t),
            POINTER(lowbit_buffer_t),
            c_int64,
            c_int64,
            c_char_p,
            c_void_p,
        ),
    ),
    "lowbit_checkpoint_load": (
        lowbit_status_t,
        (
            POINTER(lowbit_plan_t),
            c_char_p,
            POINTER(lowbit_buffer_t),
            c_int64,
            c_void_p,
            POINTER(lowbit_checkpoint_info_t),
        ),
    ),
    "lowbit_checkpoint_serialize": (
        lowbit_status_t,
        (
            POINTER(lowbit_plan_t),
            POINTER(lowbit_buffer_t),
            c_int64,
            c_int64,
            c_void_p,
            c_void_p,
            c_size_t,
            POINTER(c_size_t),
        ),
    ),
    "lowbit_checkpoint_deserialize": (
        lowbit_status_t,
        (
            POINTER(lowbit_plan_t),
            c_void_p,
            c_size_t,
            POINTER(lowbit_buffer_t),
            c_int64,
            c_void_p,
            POINTER(lowbit_checkpoint_info_t),
        ),
    ),
    "lowbit_checkpoint_write": (
        lowbit_status_t,
        (POINTER(lowbit_plan_t), POINTER(lowbit_save_args_t), c_void_p),
    ),
    "lowbit_checkpoint_read": (
        lowbit_status_t,
        (
            POINTER(lowbit_plan_t),
            POINTER(lowbit_load_args_t),
            c_void_p,
            POINTER(lowbit_checkpoint_info_t),
        ),
    ),
    "lowbit_checkpoint_index": (
        lowbit_status_t,
        (POINTER(c_char_p), c_int64, c_char_p),
    ),
    "lowbit_checkpoint_merge": (
        lowbit_status_t,
        (c_char_p, c_char_p, lowbit_progress_t, c_void_p),
    ),
    "lowbit_checkpoint_split": (
        lowbit_status_t,
        (c_char_p, c_int32, c_int64, c_char_p, lowbit_progress_t, c_void_p),
    ),
    "lowbit_checkpoint_reshard": (
        lowbit_status_t,
        (POINTER(lowbit_plan_t), c_char_p, c_char_p, lowbit_progress_t, c_void_p),
    ),
    "lowbit_checkpoint_json": (
        lowbit_status_t,
        (c_char_p, POINTER(c_char), c_size_t, POINTER(c_size_t)),
    ),
    "lowbit_checkpoint_values": (
        lowbit_status_t,
        (
            c_char_p,
            c_char_p,
            c_char_p,
            POINTER(c_int64),
            POINTER(c_int64),
            c_int32,
            POINTER(c_float),
            c_int64,
        ),
    ),
}
