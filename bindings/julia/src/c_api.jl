# The C ABI. Generated from include/lowbit.h by bindings/generate.py.
#
# `sym(name)` is the hand-written part's: the address of a function, looked up once.

const LOWBIT_HYPER_COUNT = 8
const LOWBIT_QUANTIZER_SCALE_CORRECTION = 1
const LOWBIT_QUANTIZER_DITHER = 2
const LOWBIT_SPEC_THRESHOLD = 1
const LOWBIT_SPEC_AMSGRAD = 2
const LOWBIT_SPEC_MAXIMIZE = 4
const LOWBIT_SPEC_NESTEROV = 8
const LOWBIT_SPEC_DECOUPLED = 16
const LOWBIT_ADAFACTOR_RELATIVE_STEP = 1
const LOWBIT_ADAFACTOR_SCALE_PARAMETER = 2
const LOWBIT_STEP_COUNTED = 1
const LOWBIT_NORM_SCRATCH = 24
const LOWBIT_SAVE_FD = 1
const LOWBIT_LOAD_FD = 1
const LOWBIT_LOAD_SUBSET = 2
const LOWBIT_ABI_MAJOR = 0
const LOWBIT_ABI_MINOR = 1
const LOWBIT_STATUS_OK = Int32(0)
const LOWBIT_STATUS_NULL_POINTER = Int32(1)
const LOWBIT_STATUS_INVALID_ARGUMENT = Int32(2)
const LOWBIT_STATUS_STRUCT_SIZE = Int32(3)
const LOWBIT_STATUS_UNKNOWN_FLAG = Int32(4)
const LOWBIT_STATUS_BUFFER_SIZE = Int32(5)
const LOWBIT_STATUS_MISALIGNED = Int32(6)
const LOWBIT_STATUS_OVERLAP = Int32(7)
const LOWBIT_STATUS_UNSUPPORTED = Int32(20)
const LOWBIT_STATUS_FORMAT_MAGIC = Int32(40)
const LOWBIT_STATUS_FORMAT_VERSION = Int32(41)
const LOWBIT_STATUS_FORMAT_TRUNCATED = Int32(42)
const LOWBIT_STATUS_FORMAT_CORRUPT = Int32(43)
const LOWBIT_STATUS_FORMAT_MISMATCH = Int32(44)
const LOWBIT_STATUS_CUDA_UNAVAILABLE = Int32(60)
const LOWBIT_STATUS_CUDA_OUT_OF_MEMORY = Int32(62)
const LOWBIT_STATUS_CUDA_ERROR = Int32(63)
const LOWBIT_STATUS_OUT_OF_MEMORY = Int32(80)
const LOWBIT_STATUS_IO = Int32(81)
const LOWBIT_STATUS_CANCELLED = Int32(82)
const LOWBIT_STATUS_INTERNAL = Int32(100)
const LOWBIT_DTYPE_F32 = Int32(1)
const LOWBIT_DTYPE_BF16 = Int32(2)
const LOWBIT_DTYPE_F16 = Int32(3)
const LOWBIT_DTYPE_U8 = Int32(4)
const LOWBIT_DTYPE_I32 = Int32(5)
const LOWBIT_DTYPE_I64 = Int32(6)
const LOWBIT_DTYPE_U16 = Int32(7)
const LOWBIT_DTYPE_I8 = Int32(8)
const LOWBIT_OPTIMIZER_ADAMW = Int32(1)
const LOWBIT_OPTIMIZER_NONE = Int32(2)
const LOWBIT_OPTIMIZER_ADAM = Int32(3)
const LOWBIT_OPTIMIZER_SGDM = Int32(4)
const LOWBIT_OPTIMIZER_LION = Int32(5)
const LOWBIT_OPTIMIZER_ADAFACTOR = Int32(6)
const LOWBIT_OPTIMIZER_SM3 = Int32(7)
const LOWBIT_NORMALIZATION_BLOCK = Int32(1)
const LOWBIT_NORMALIZATION_RANK1 = Int32(2)
const LOWBIT_NORMALIZATION_TENSOR = Int32(3)
const LOWBIT_NORMALIZATION_ROW = Int32(4)
const LOWBIT_NORMALIZATION_COLUMN = Int32(5)
const LOWBIT_NORMALIZATION_FACTORED = Int32(6)
const LOWBIT_MAPPING_DE = Int32(1)
const LOWBIT_MAPPING_LINEAR = Int32(2)
const LOWBIT_MAPPING_DE0 = Int32(3)
const LOWBIT_MAPPING_LINEAR_WITH_ZERO = Int32(4)
const LOWBIT_MAPPING_POWER2 = Int32(5)
const LOWBIT_MAPPING_POWER3 = Int32(6)
const LOWBIT_MAPPING_NF4 = Int32(7)
const LOWBIT_MAPPING_GEOMETRIC = Int32(8)
const LOWBIT_MAPPING_TABLE = Int32(9)
const LOWBIT_ROUNDING_NEAREST = Int32(0)
const LOWBIT_ROUNDING_STOCHASTIC = Int32(1)
const LOWBIT_ROUNDING_STOCHASTIC_LOG = Int32(2)
const LOWBIT_ROUNDING_STOCHASTIC_PRECONDITIONER = Int32(3)
const LOWBIT_FACTOR_AXES_MERGED = Int32(0)
const LOWBIT_FACTOR_AXES_LAST_TWO = Int32(1)
const LOWBIT_FACTOR_AXES_LARGEST_TWO = Int32(2)
const LOWBIT_WEIGHTS_PLAIN = Int32(0)
const LOWBIT_WEIGHTS_STOCHASTIC = Int32(1)
const LOWBIT_WEIGHTS_MASTER = Int32(2)
const LOWBIT_WEIGHTS_REMAINDER16 = Int32(3)
const LOWBIT_WEIGHTS_CORRECTION8 = Int32(4)
const LOWBIT_CPU_VARIANT_AUTO = Int32(0)
const LOWBIT_CPU_VARIANT_REFERENCE = Int32(1)
const LOWBIT_CPU_VARIANT_PORTABLE = Int32(2)
const LOWBIT_CPU_VARIANT_AVX2 = Int32(3)
const LOWBIT_CPU_VARIANT_AVX512 = Int32(4)
const LOWBIT_NONFINITE_DEFAULT = Int32(0)
const LOWBIT_NONFINITE_SKIP_BLOCK = Int32(1)
const LOWBIT_NONFINITE_SKIP_TENSOR = Int32(2)
const LOWBIT_NONFINITE_SKIP_STEP = Int32(3)
const LOWBIT_NONFINITE_PROPAGATE = Int32(4)
const LOWBIT_REDUCE_MAX = Int32(1)
const LOWBIT_REDUCE_SUM = Int32(2)
const LOWBIT_REPORT_TABLE = 0
const LOWBIT_REPORT_JSON = 1

const lowbit_context_t = Cvoid

const lowbit_offload_t = Cvoid

const lowbit_plan_t = Cvoid

const lowbit_report_t = Cvoid

const lowbit_spec_t = Cvoid

const lowbit_state_t = Cvoid

const lowbit_status_t = Int32

const lowbit_optimizer_t = Int32

const lowbit_normalization_t = Int32

const lowbit_mapping_t = Int32

const lowbit_rounding_t = Int32

const lowbit_factor_axes_t = Int32

struct lowbit_quantizer_info_t
    struct_size::Csize_t
    bits::Int32
    normalization::lowbit_normalization_t
    mapping::lowbit_mapping_t
    rounding::lowbit_rounding_t
    block::Int64
    flags::UInt64
    levels::Ptr{Cfloat}
    level_count::Int64
    factor_axes::lowbit_factor_axes_t
    reserved::Int32
end

"As the INIT macro sets it; keywords are fields."
function lowbit_quantizer_info_t(;
    struct_size = sizeof(lowbit_quantizer_info_t),
    bits = 4,
    normalization = LOWBIT_NORMALIZATION_BLOCK,
    mapping = LOWBIT_MAPPING_DE,
    rounding = LOWBIT_ROUNDING_NEAREST,
    block = 128,
    flags = 0,
    levels = C_NULL,
    level_count = 0,
    factor_axes = 0,
    reserved = 0,
)
    lowbit_quantizer_info_t(
        struct_size,
        bits,
        normalization,
        mapping,
        rounding,
        block,
        flags,
        levels,
        level_count,
        factor_axes,
        reserved,
    )
end

struct lowbit_override_info_t
    struct_size::Csize_t
    pattern::Ptr{UInt8}
    m::Ptr{lowbit_quantizer_info_t}
    v::Ptr{lowbit_quantizer_info_t}
    x::Ptr{lowbit_quantizer_info_t}
end

"As the INIT macro sets it; keywords are fields."
function lowbit_override_info_t(;
    struct_size = sizeof(lowbit_override_info_t),
    pattern = C_NULL,
    m = C_NULL,
    v = C_NULL,
    x = C_NULL,
)
    lowbit_override_info_t(
        struct_size,
        pattern,
        m,
        v,
        x,
    )
end

struct lowbit_adafactor_info_t
    struct_size::Csize_t
    flags::UInt64
    clip_threshold::Cfloat
    decay_rate::Cfloat
    eps2::Cfloat
    reserved::Int32
end

"As the INIT macro sets it; keywords are fields."
function lowbit_adafactor_info_t(;
    struct_size = sizeof(lowbit_adafactor_info_t),
    flags = LOWBIT_ADAFACTOR_RELATIVE_STEP | LOWBIT_ADAFACTOR_SCALE_PARAMETER,
    clip_threshold = 1.0,
    decay_rate = 0.8,
    eps2 = 1e-3,
    reserved = 0,
)
    lowbit_adafactor_info_t(
        struct_size,
        flags,
        clip_threshold,
        decay_rate,
        eps2,
        reserved,
    )
end

struct lowbit_spec_info_t
    struct_size::Csize_t
    flags::UInt64
    preset::Ptr{UInt8}
    optimizer::lowbit_optimizer_t
    reserved::Int32
    threshold::Int64
    m::Ptr{lowbit_quantizer_info_t}
    v::Ptr{lowbit_quantizer_info_t}
    x::Ptr{lowbit_quantizer_info_t}
    overrides::Ptr{lowbit_override_info_t}
    override_count::Int64
    seed::UInt64
    dampening::Cfloat
    reserved2::Int32
    adafactor::Ptr{lowbit_adafactor_info_t}
end

"As the INIT macro sets it; keywords are fields."
function lowbit_spec_info_t(;
    struct_size = sizeof(lowbit_spec_info_t),
    flags = 0,
    preset = C_NULL,
    optimizer = 0,
    reserved = 0,
    threshold = 0,
    m = C_NULL,
    v = C_NULL,
    x = C_NULL,
    overrides = C_NULL,
    override_count = 0,
    seed = 0,
    dampening = 0,
    reserved2 = 0,
    adafactor = C_NULL,
)
    lowbit_spec_info_t(
        struct_size,
        flags,
        preset,
        optimizer,
        reserved,
        threshold,
        m,
        v,
        x,
        overrides,
        override_count,
        seed,
        dampening,
        reserved2,
        adafactor,
    )
end

const lowbit_cpu_variant_t = Int32

struct lowbit_cpu_info_t
    struct_size::Csize_t
    flags::UInt64
    threads::Int64
    variant::lowbit_cpu_variant_t
    reserved::Int32
    parallel_for::Ptr{Cvoid}
    parallel_for_user::Ptr{Cvoid}
end

"As the INIT macro sets it; keywords are fields."
function lowbit_cpu_info_t(;
    struct_size = sizeof(lowbit_cpu_info_t),
    flags = 0,
    threads = 0,
    variant = LOWBIT_CPU_VARIANT_AUTO,
    reserved = 0,
    parallel_for = C_NULL,
    parallel_for_user = C_NULL,
)
    lowbit_cpu_info_t(
        struct_size,
        flags,
        threads,
        variant,
        reserved,
        parallel_for,
        parallel_for_user,
    )
end

struct lowbit_cuda_info_t
    struct_size::Csize_t
    flags::UInt64
    device::Int32
    reserved::Int32
end

"As the INIT macro sets it; keywords are fields."
function lowbit_cuda_info_t(;
    struct_size = sizeof(lowbit_cuda_info_t),
    flags = 0,
    device = 0,
    reserved = 0,
)
    lowbit_cuda_info_t(
        struct_size,
        flags,
        device,
        reserved,
    )
end

const lowbit_dtype_t = Int32

const lowbit_weights_t = Int32

struct lowbit_tensor_info_t
    struct_size::Csize_t
    flags::UInt64
    name::Ptr{UInt8}
    shape::Ptr{Int64}
    ndim::Int32
    param_dtype::lowbit_dtype_t
    grad_dtype::lowbit_dtype_t
    weights::lowbit_weights_t
    global_shape::Ptr{Int64}
    offset::Ptr{Int64}
    group::Int64
end

"As the INIT macro sets it; keywords are fields."
function lowbit_tensor_info_t(;
    struct_size = sizeof(lowbit_tensor_info_t),
    flags = 0,
    name = C_NULL,
    shape = C_NULL,
    ndim = 0,
    param_dtype = LOWBIT_DTYPE_F32,
    grad_dtype = 0,
    weights = LOWBIT_WEIGHTS_PLAIN,
    global_shape = C_NULL,
    offset = C_NULL,
    group = 0,
)
    lowbit_tensor_info_t(
        struct_size,
        flags,
        name,
        shape,
        ndim,
        param_dtype,
        grad_dtype,
        weights,
        global_shape,
        offset,
        group,
    )
end

struct lowbit_plan_info_t
    struct_size::Csize_t
    tensor_count::Int64
    buffer_count::Int64
    state_bytes::Int64
    arena_bytes::Int64
    arena_align::Int64
    scratch_bytes::Int64
    stage_count::Int64
    group_count::Int64
end

"As the INIT macro sets it; keywords are fields."
function lowbit_plan_info_t(;
    struct_size = sizeof(lowbit_plan_info_t),
    tensor_count = 0,
    buffer_count = 0,
    state_bytes = 0,
    arena_bytes = 0,
    arena_align = 0,
    scratch_bytes = 0,
    stage_count = 0,
    group_count = 0,
)
    lowbit_plan_info_t(
        struct_size,
        tensor_count,
        buffer_count,
        state_bytes,
        arena_bytes,
        arena_align,
        scratch_bytes,
        stage_count,
        group_count,
    )
end

struct lowbit_tensor_report_t
    struct_size::Csize_t
    name::Ptr{UInt8}
    quantizers::Ptr{UInt8}
    reason::Ptr{UInt8}
    numel::Int64
    state_bytes::Int64
    first_buffer::Int64
    buffer_count::Int64
end

"As the INIT macro sets it; keywords are fields."
function lowbit_tensor_report_t(;
    struct_size = sizeof(lowbit_tensor_report_t),
    name = C_NULL,
    quantizers = C_NULL,
    reason = C_NULL,
    numel = 0,
    state_bytes = 0,
    first_buffer = 0,
    buffer_count = 0,
)
    lowbit_tensor_report_t(
        struct_size,
        name,
        quantizers,
        reason,
        numel,
        state_bytes,
        first_buffer,
        buffer_count,
    )
end

struct lowbit_buffer_info_t
    struct_size::Csize_t
    tensor::Int64
    state::Ptr{UInt8}
    part::Ptr{UInt8}
    dtype::lowbit_dtype_t
    ndim::Int32
    shape::Ptr{Int64}
    bytes::Int64
    arena_offset::Int64
end

"As the INIT macro sets it; keywords are fields."
function lowbit_buffer_info_t(;
    struct_size = sizeof(lowbit_buffer_info_t),
    tensor = 0,
    state = C_NULL,
    part = C_NULL,
    dtype = 0,
    ndim = 0,
    shape = C_NULL,
    bytes = 0,
    arena_offset = 0,
)
    lowbit_buffer_info_t(
        struct_size,
        tensor,
        state,
        part,
        dtype,
        ndim,
        shape,
        bytes,
        arena_offset,
    )
end

const lowbit_reduce_t = Int32

struct lowbit_stage_info_t
    struct_size::Csize_t
    dtype::lowbit_dtype_t
    reduce::lowbit_reduce_t
    offset::Int64
    count::Int64
end

"As the INIT macro sets it; keywords are fields."
function lowbit_stage_info_t(;
    struct_size = sizeof(lowbit_stage_info_t),
    dtype = 0,
    reduce = 0,
    offset = 0,
    count = 0,
)
    lowbit_stage_info_t(
        struct_size,
        dtype,
        reduce,
        offset,
        count,
    )
end

struct lowbit_buffer_t
    data::Ptr{Cvoid}
    bytes::Int64
end

const lowbit_nonfinite_t = Int32

struct lowbit_step_args_t
    struct_size::Csize_t
    flags::UInt64
    tensor_count::Int64
    params::Ptr{lowbit_buffer_t}
    grads::Ptr{lowbit_buffer_t}
    updates::Ptr{lowbit_buffer_t}
    buffer_count::Int64
    state::Ptr{lowbit_buffer_t}
    scratch::lowbit_buffer_t
    lr::Cfloat
    beta1::Cfloat
    beta2::Cfloat
    eps::Cfloat
    weight_decay::Cfloat
    grad_scale::Cfloat
    clip_factor::Cfloat
    skip::Cfloat
    step::Int32
    nonfinite::lowbit_nonfinite_t
    hyper::Ptr{Cfloat}
    step_number::Ptr{Int32}
    offsets::Ptr{Ptr{Int64}}
    skipped::Ptr{Int64}
end

"As the INIT macro sets it; keywords are fields."
function lowbit_step_args_t(;
    struct_size = sizeof(lowbit_step_args_t),
    flags = 0,
    tensor_count = 0,
    params = C_NULL,
    grads = C_NULL,
    updates = C_NULL,
    buffer_count = 0,
    state = C_NULL,
    scratch = lowbit_buffer_t(C_NULL, 0),
    lr = 1e-3,
    beta1 = 0.9,
    beta2 = 0.999,
    eps = 1e-8,
    weight_decay = 0.01,
    grad_scale = 1.0,
    clip_factor = 1.0,
    skip = 0,
    step = 1,
    nonfinite = LOWBIT_NONFINITE_DEFAULT,
    hyper = C_NULL,
    step_number = C_NULL,
    offsets = C_NULL,
    skipped = C_NULL,
)
    lowbit_step_args_t(
        struct_size,
        flags,
        tensor_count,
        params,
        grads,
        updates,
        buffer_count,
        state,
        scratch,
        lr,
        beta1,
        beta2,
        eps,
        weight_decay,
        grad_scale,
        clip_factor,
        skip,
        step,
        nonfinite,
        hyper,
        step_number,
        offsets,
        skipped,
    )
end

struct lowbit_offload_info_t
    struct_size::Csize_t
    on_host::Int32
    reserved::Int32
    chunk_count::Int64
    staging_bytes::Int64
    host_bytes::Int64
    bytes_to_device::Int64
    bytes_to_host::Int64
    stepped::Int64
end

"As the INIT macro sets it; keywords are fields."
function lowbit_offload_info_t(;
    struct_size = sizeof(lowbit_offload_info_t),
    on_host = 0,
    reserved = 0,
    chunk_count = 0,
    staging_bytes = 0,
    host_bytes = 0,
    bytes_to_device = 0,
    bytes_to_host = 0,
    stepped = 0,
)
    lowbit_offload_info_t(
        struct_size,
        on_host,
        reserved,
        chunk_count,
        staging_bytes,
        host_bytes,
        bytes_to_device,
        bytes_to_host,
        stepped,
    )
end

struct lowbit_norm_args_t
    struct_size::Csize_t
    flags::UInt64
    tensor_count::Int64
    grads::Ptr{lowbit_buffer_t}
    scratch::lowbit_buffer_t
    grad_scale::Cfloat
    max_norm::Cfloat
end

"As the INIT macro sets it; keywords are fields."
function lowbit_norm_args_t(;
    struct_size = sizeof(lowbit_norm_args_t),
    flags = 0,
    tensor_count = 0,
    grads = C_NULL,
    scratch = lowbit_buffer_t(C_NULL, 0),
    grad_scale = 1.0,
    max_norm = 1.0,
)
    lowbit_norm_args_t(
        struct_size,
        flags,
        tensor_count,
        grads,
        scratch,
        grad_scale,
        max_norm,
    )
end

const lowbit_report_format_t = Int32

struct lowbit_ema_args_t
    struct_size::Csize_t
    flags::UInt64
    state_name::Ptr{UInt8}
    tensor_count::Int64
    inputs::Ptr{lowbit_buffer_t}
    outputs::Ptr{lowbit_buffer_t}
    buffer_count::Int64
    state::Ptr{lowbit_buffer_t}
    decay::Cfloat
    weight::Cfloat
    step::Int32
    reserved::Int32
end

"As the INIT macro sets it; keywords are fields."
function lowbit_ema_args_t(;
    struct_size = sizeof(lowbit_ema_args_t),
    flags = 0,
    state_name = C_NULL,
    tensor_count = 0,
    inputs = C_NULL,
    outputs = C_NULL,
    buffer_count = 0,
    state = C_NULL,
    decay = 0.9,
    weight = 0.1,
    step = 1,
    reserved = 0,
)
    lowbit_ema_args_t(
        struct_size,
        flags,
        state_name,
        tensor_count,
        inputs,
        outputs,
        buffer_count,
        state,
        decay,
        weight,
        step,
        reserved,
    )
end

struct lowbit_checkpoint_info_t
    struct_size::Csize_t
    step::Int64
end

"As the INIT macro sets it; keywords are fields."
function lowbit_checkpoint_info_t(;
    struct_size = sizeof(lowbit_checkpoint_info_t),
    step = 0,
)
    lowbit_checkpoint_info_t(
        struct_size,
        step,
    )
end

struct lowbit_save_args_t
    struct_size::Csize_t
    flags::UInt64
    buffer_count::Int64
    state::Ptr{lowbit_buffer_t}
    step::Int64
    path::Ptr{UInt8}
    write::Ptr{Cvoid}
    write_user::Ptr{Cvoid}
    fd::Int32
    keep::Int32
    progress::Ptr{Cvoid}
    progress_user::Ptr{Cvoid}
end

"As the INIT macro sets it; keywords are fields."
function lowbit_save_args_t(;
    struct_size = sizeof(lowbit_save_args_t),
    flags = 0,
    buffer_count = 0,
    state = C_NULL,
    step = 0,
    path = C_NULL,
    write = C_NULL,
    write_user = C_NULL,
    fd = 0,
    keep = 0,
    progress = C_NULL,
    progress_user = C_NULL,
)
    lowbit_save_args_t(
        struct_size,
        flags,
        buffer_count,
        state,
        step,
        path,
        write,
        write_user,
        fd,
        keep,
        progress,
        progress_user,
    )
end

struct lowbit_load_args_t
    struct_size::Csize_t
    flags::UInt64
    buffer_count::Int64
    state::Ptr{lowbit_buffer_t}
    path::Ptr{UInt8}
    read::Ptr{Cvoid}
    read_user::Ptr{Cvoid}
    bytes::Int64
    fd::Int32
    reserved::Int32
    progress::Ptr{Cvoid}
    progress_user::Ptr{Cvoid}
end

"As the INIT macro sets it; keywords are fields."
function lowbit_load_args_t(;
    struct_size = sizeof(lowbit_load_args_t),
    flags = 0,
    buffer_count = 0,
    state = C_NULL,
    path = C_NULL,
    read = C_NULL,
    read_user = C_NULL,
    bytes = 0,
    fd = 0,
    reserved = 0,
    progress = C_NULL,
    progress_user = C_NULL,
)
    lowbit_load_args_t(
        struct_size,
        flags,
        buffer_count,
        state,
        path,
        read,
        read_user,
        bytes,
        fd,
        reserved,
        progress,
        progress_user,
    )
end

lowbit_abi_version(major, minor) = ccall(
    sym(:lowbit_abi_version),
    lowbit_status_t,
    (Ptr{UInt32}, Ptr{UInt32}),
    major,
    minor,
)

lowbit_version() = ccall(
    sym(:lowbit_version),
    Cstring,
    (),
)

lowbit_status_name(status) = ccall(
    sym(:lowbit_status_name),
    Cstring,
    (lowbit_status_t,),
    status,
)

lowbit_last_error(buf, cap, needed) = ccall(
    sym(:lowbit_last_error),
    lowbit_status_t,
    (Ptr{UInt8}, Csize_t, Ptr{Csize_t}),
    buf,
    cap,
    needed,
)

lowbit_spec_create_preset(name, out) = ccall(
    sym(:lowbit_spec_create_preset),
    lowbit_status_t,
    (Cstring, Ptr{Ptr{lowbit_spec_t}}),
    name,
    out,
)

lowbit_spec_create_json(json, out) = ccall(
    sym(:lowbit_spec_create_json),
    lowbit_status_t,
    (Cstring, Ptr{Ptr{lowbit_spec_t}}),
    json,
    out,
)

lowbit_spec_create(info, out) = ccall(
    sym(:lowbit_spec_create),
    lowbit_status_t,
    (Ptr{lowbit_spec_info_t}, Ptr{Ptr{lowbit_spec_t}}),
    info,
    out,
)

lowbit_spec_json(spec, buf, cap, needed) = ccall(
    sym(:lowbit_spec_json),
    lowbit_status_t,
    (Ptr{lowbit_spec_t}, Ptr{UInt8}, Csize_t, Ptr{Csize_t}),
    spec,
    buf,
    cap,
    needed,
)

lowbit_spec_destroy(spec) = ccall(
    sym(:lowbit_spec_destroy),
    Cvoid,
    (Ptr{lowbit_spec_t},),
    spec,
)

lowbit_context_create_cpu(info, out) = ccall(
    sym(:lowbit_context_create_cpu),
    lowbit_status_t,
    (Ptr{lowbit_cpu_info_t}, Ptr{Ptr{lowbit_context_t}}),
    info,
    out,
)

lowbit_context_create_cuda(info, out) = ccall(
    sym(:lowbit_context_create_cuda),
    lowbit_status_t,
    (Ptr{lowbit_cuda_info_t}, Ptr{Ptr{lowbit_context_t}}),
    info,
    out,
)

lowbit_cuda_probe(device, buf, cap, needed) = ccall(
    sym(:lowbit_cuda_probe),
    lowbit_status_t,
    (Int32, Ptr{UInt8}, Csize_t, Ptr{Csize_t}),
    device,
    buf,
    cap,
    needed,
)

lowbit_context_destroy(context) = ccall(
    sym(:lowbit_context_destroy),
    Cvoid,
    (Ptr{lowbit_context_t},),
    context,
)

lowbit_plan_create(context, spec, tensors, tensor_count, out) = ccall(
    sym(:lowbit_plan_create),
    lowbit_status_t,
    (Ptr{lowbit_context_t}, Ptr{lowbit_spec_t}, Ptr{lowbit_tensor_info_t}, Int64, Ptr{Ptr{lowbit_plan_t}}),
    context,
    spec,
    tensors,
    tensor_count,
    out,
)

lowbit_plan_info(plan, out) = ccall(
    sym(:lowbit_plan_info),
    lowbit_status_t,
    (Ptr{lowbit_plan_t}, Ptr{lowbit_plan_info_t}),
    plan,
    out,
)

lowbit_plan_tensor(plan, tensor, out) = ccall(
    sym(:lowbit_plan_tensor),
    lowbit_status_t,
    (Ptr{lowbit_plan_t}, Int64, Ptr{lowbit_tensor_report_t}),
    plan,
    tensor,
    out,
)

lowbit_plan_buffer(plan, buffer, out) = ccall(
    sym(:lowbit_plan_buffer),
    lowbit_status_t,
    (Ptr{lowbit_plan_t}, Int64, Ptr{lowbit_buffer_info_t}),
    plan,
    buffer,
    out,
)

lowbit_plan_stage(plan, stage, out) = ccall(
    sym(:lowbit_plan_stage),
    lowbit_status_t,
    (Ptr{lowbit_plan_t}, Int64, Ptr{lowbit_stage_info_t}),
    plan,
    stage,
    out,
)

lowbit_plan_report(plan, buf, cap, needed) = ccall(
    sym(:lowbit_plan_report),
    lowbit_status_t,
    (Ptr{lowbit_plan_t}, Ptr{UInt8}, Csize_t, Ptr{Csize_t}),
    plan,
    buf,
    cap,
    needed,
)

lowbit_plan_destroy(plan) = ccall(
    sym(:lowbit_plan_destroy),
    Cvoid,
    (Ptr{lowbit_plan_t},),
    plan,
)

lowbit_state_create(plan, stream, out) = ccall(
    sym(:lowbit_state_create),
    lowbit_status_t,
    (Ptr{lowbit_plan_t}, Ptr{Cvoid}, Ptr{Ptr{lowbit_state_t}}),
    plan,
    stream,
    out,
)

lowbit_state_buffers(state, buffers, buffer_count) = ccall(
    sym(:lowbit_state_buffers),
    lowbit_status_t,
    (Ptr{lowbit_state_t}, Ptr{lowbit_buffer_t}, Int64),
    state,
    buffers,
    buffer_count,
)

lowbit_state_destroy(state, stream) = ccall(
    sym(:lowbit_state_destroy),
    Cvoid,
    (Ptr{lowbit_state_t}, Ptr{Cvoid}),
    state,
    stream,
)

lowbit_step(plan, args, stream) = ccall(
    sym(:lowbit_step),
    lowbit_status_t,
    (Ptr{lowbit_plan_t}, Ptr{lowbit_step_args_t}, Ptr{Cvoid}),
    plan,
    args,
    stream,
)

lowbit_step_stats(plan, args, stage, stream) = ccall(
    sym(:lowbit_step_stats),
    lowbit_status_t,
    (Ptr{lowbit_plan_t}, Ptr{lowbit_step_args_t}, Int64, Ptr{Cvoid}),
    plan,
    args,
    stage,
    stream,
)

lowbit_step_apply(plan, args, stream) = ccall(
    sym(:lowbit_step_apply),
    lowbit_status_t,
    (Ptr{lowbit_plan_t}, Ptr{lowbit_step_args_t}, Ptr{Cvoid}),
    plan,
    args,
    stream,
)

lowbit_offload_create(plan, device, staging_bytes, out) = ccall(
    sym(:lowbit_offload_create),
    lowbit_status_t,
    (Ptr{lowbit_plan_t}, Ptr{lowbit_context_t}, Int64, Ptr{Ptr{lowbit_offload_t}}),
    plan,
    device,
    staging_bytes,
    out,
)

lowbit_offload_info(offload, out) = ccall(
    sym(:lowbit_offload_info),
    lowbit_status_t,
    (Ptr{lowbit_offload_t}, Ptr{lowbit_offload_info_t}),
    offload,
    out,
)

lowbit_offload_buffers(offload, params, tensor_count, state, buffer_count) = ccall(
    sym(:lowbit_offload_buffers),
    lowbit_status_t,
    (Ptr{lowbit_offload_t}, Ptr{lowbit_buffer_t}, Int64, Ptr{lowbit_buffer_t}, Int64),
    offload,
    params,
    tensor_count,
    state,
    buffer_count,
)

lowbit_offload_step(offload, args, stream) = ccall(
    sym(:lowbit_offload_step),
    lowbit_status_t,
    (Ptr{lowbit_offload_t}, Ptr{lowbit_step_args_t}, Ptr{Cvoid}),
    offload,
    args,
    stream,
)

lowbit_offload_destroy(offload) = ccall(
    sym(:lowbit_offload_destroy),
    Cvoid,
    (Ptr{lowbit_offload_t},),
    offload,
)

lowbit_norm(plan, args, stream, norm, clip_factor) = ccall(
    sym(:lowbit_norm),
    lowbit_status_t,
    (Ptr{lowbit_plan_t}, Ptr{lowbit_norm_args_t}, Ptr{Cvoid}, Ptr{Cfloat}, Ptr{Cfloat}),
    plan,
    args,
    stream,
    norm,
    clip_factor,
)

lowbit_norm_stats(plan, args, stage, stream) = ccall(
    sym(:lowbit_norm_stats),
    lowbit_status_t,
    (Ptr{lowbit_plan_t}, Ptr{lowbit_norm_args_t}, Int64, Ptr{Cvoid}),
    plan,
    args,
    stage,
    stream,
)

lowbit_norm_finish(plan, args, norm, clip_factor) = ccall(
    sym(:lowbit_norm_finish),
    lowbit_status_t,
    (Ptr{lowbit_plan_t}, Ptr{lowbit_norm_args_t}, Ptr{Cfloat}, Ptr{Cfloat}),
    plan,
    args,
    norm,
    clip_factor,
)

lowbit_norm_clip(plan, args, stream, norm, clip_factor) = ccall(
    sym(:lowbit_norm_clip),
    lowbit_status_t,
    (Ptr{lowbit_plan_t}, Ptr{lowbit_norm_args_t}, Ptr{Cvoid}, Ptr{Cfloat}, Ptr{Cfloat}),
    plan,
    args,
    stream,
    norm,
    clip_factor,
)

lowbit_norm_stage(plan, stage, out) = ccall(
    sym(:lowbit_norm_stage),
    lowbit_status_t,
    (Ptr{lowbit_plan_t}, Int64, Ptr{lowbit_stage_info_t}),
    plan,
    stage,
    out,
)

lowbit_report_create(plan, args, out) = ccall(
    sym(:lowbit_report_create),
    lowbit_status_t,
    (Ptr{lowbit_plan_t}, Ptr{lowbit_step_args_t}, Ptr{Ptr{lowbit_report_t}}),
    plan,
    args,
    out,
)

lowbit_report_text(report, format, buf, cap, needed) = ccall(
    sym(:lowbit_report_text),
    lowbit_status_t,
    (Ptr{lowbit_report_t}, lowbit_report_format_t, Ptr{UInt8}, Csize_t, Ptr{Csize_t}),
    report,
    format,
    buf,
    cap,
    needed,
)

lowbit_report_destroy(report) = ccall(
    sym(:lowbit_report_destroy),
    Cvoid,
    (Ptr{lowbit_report_t},),
    report,
)

lowbit_compress(plan, state_name, values, tensor_count, state, buffer_count, stream) = ccall(
    sym(:lowbit_compress),
    lowbit_status_t,
    (Ptr{lowbit_plan_t}, Cstring, Ptr{lowbit_buffer_t}, Int64, Ptr{lowbit_buffer_t}, Int64, Ptr{Cvoid}),
    plan,
    state_name,
    values,
    tensor_count,
    state,
    buffer_count,
    stream,
)

lowbit_decompress(plan, state_name, state, buffer_count, values, tensor_count, stream) = ccall(
    sym(:lowbit_decompress),
    lowbit_status_t,
    (Ptr{lowbit_plan_t}, Cstring, Ptr{lowbit_buffer_t}, Int64, Ptr{lowbit_buffer_t}, Int64, Ptr{Cvoid}),
    plan,
    state_name,
    state,
    buffer_count,
    values,
    tensor_count,
    stream,
)

lowbit_ema(plan, args, stream) = ccall(
    sym(:lowbit_ema),
    lowbit_status_t,
    (Ptr{lowbit_plan_t}, Ptr{lowbit_ema_args_t}, Ptr{Cvoid}),
    plan,
    args,
    stream,
)

lowbit_convert(from, old_state, old_count, to, new_state, new_count) = ccall(
    sym(:lowbit_convert),
    lowbit_status_t,
    (Ptr{lowbit_plan_t}, Ptr{lowbit_buffer_t}, Int64, Ptr{lowbit_plan_t}, Ptr{lowbit_buffer_t}, Int64),
    from,
    old_state,
    old_count,
    to,
    new_state,
    new_count,
)

lowbit_checkpoint_save(plan, state, buffer_count, step, path, stream) = ccall(
    sym(:lowbit_checkpoint_save),
    lowbit_status_t,
    (Ptr{lowbit_plan_t}, Ptr{lowbit_buffer_t}, Int64, Int64, Cstring, Ptr{Cvoid}),
    plan,
    state,
    buffer_count,
    step,
    path,
    stream,
)

lowbit_checkpoint_load(plan, path, state, buffer_count, stream, out) = ccall(
    sym(:lowbit_checkpoint_load),
    lowbit_status_t,
    (Ptr{lowbit_plan_t}, Cstring, Ptr{lowbit_buffer_t}, Int64, Ptr{Cvoid}, Ptr{lowbit_checkpoint_info_t}),
    plan,
    path,
    state,
    buffer_count,
    stream,
    out,
)

lowbit_checkpoint_serialize(plan, state, buffer_count, step, stream, buf, cap, needed) = ccall(
    sym(:lowbit_checkpoint_serialize),
    lowbit_status_t,
    (Ptr{lowbit_plan_t}, Ptr{lowbit_buffer_t}, Int64, Int64, Ptr{Cvoid}, Ptr{Cvoid}, Csize_t, Ptr{Csize_t}),
    plan,
    state,
    buffer_count,
    step,
    stream,
    buf,
    cap,
    needed,
)

lowbit_checkpoint_deserialize(plan, data, bytes, state, buffer_count, stream, out) = ccall(
    sym(:lowbit_checkpoint_deserialize),
    lowbit_status_t,
    (Ptr{lowbit_plan_t}, Ptr{Cvoid}, Csize_t, Ptr{lowbit_buffer_t}, Int64, Ptr{Cvoid}, Ptr{lowbit_checkpoint_info_t}),
    plan,
    data,
    bytes,
    state,
    buffer_count,
    stream,
    out,
)

lowbit_checkpoint_write(plan, args, stream) = ccall(
    sym(:lowbit_checkpoint_write),
    lowbit_status_t,
    (Ptr{lowbit_plan_t}, Ptr{lowbit_save_args_t}, Ptr{Cvoid}),
    plan,
    args,
    stream,
)

lowbit_checkpoint_read(plan, args, stream, out) = ccall(
    sym(:lowbit_checkpoint_read),
    lowbit_status_t,
    (Ptr{lowbit_plan_t}, Ptr{lowbit_load_args_t}, Ptr{Cvoid}, Ptr{lowbit_checkpoint_info_t}),
    plan,
    args,
    stream,
    out,
)

lowbit_checkpoint_index(paths, path_count, path) = ccall(
    sym(:lowbit_checkpoint_index),
    lowbit_status_t,
    (Ptr{Ptr{UInt8}}, Int64, Cstring),
    paths,
    path_count,
    path,
)

lowbit_checkpoint_merge(from, path, progress, user) = ccall(
    sym(:lowbit_checkpoint_merge),
    lowbit_status_t,
    (Cstring, Cstring, Ptr{Cvoid}, Ptr{Cvoid}),
    from,
    path,
    progress,
    user,
)

lowbit_checkpoint_split(from, axis, parts, path, progress, user) = ccall(
    sym(:lowbit_checkpoint_split),
    lowbit_status_t,
    (Cstring, Int32, Int64, Cstring, Ptr{Cvoid}, Ptr{Cvoid}),
    from,
    axis,
    parts,
    path,
    progress,
    user,
)

lowbit_checkpoint_reshard(plan, from, path, progress, user) = ccall(
    sym(:lowbit_checkpoint_reshard),
    lowbit_status_t,
    (Ptr{lowbit_plan_t}, Cstring, Cstring, Ptr{Cvoid}, Ptr{Cvoid}),
    plan,
    from,
    path,
    progress,
    user,
)

lowbit_checkpoint_json(from, buf, cap, needed) = ccall(
    sym(:lowbit_checkpoint_json),
    lowbit_status_t,
    (Cstring, Ptr{UInt8}, Csize_t, Ptr{Csize_t}),
    from,
    buf,
    cap,
    needed,
)

lowbit_checkpoint_values(from, tensor, state_name, offset, shape, ndim, values, bytes) = ccall(
    sym(:lowbit_checkpoint_values),
    lowbit_status_t,
    (Cstring, Cstring, Cstring, Ptr{Int64}, Ptr{Int64}, Int32, Ptr{Cfloat}, Int64),
    from,
    tensor,
    state_name,
    offset,
    shape,
    ndim,
    values,
    bytes,
)
