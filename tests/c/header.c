/*
 * The header in two units, as C and as C++: included twice each, all macros used, and the functions
 * found by their C names. header_again.c is the other unit.
 */

#include "lowbit.h"
#include "lowbit.h"

#ifdef __cplusplus
extern "C"
#endif
int abi_is_mine_too(void);

int main(void) {
  const lowbit_quantizer_info_t quantizer = LOWBIT_QUANTIZER_INFO_INIT;
  const lowbit_override_info_t rule = LOWBIT_OVERRIDE_INFO_INIT;
  const lowbit_spec_info_t spec = LOWBIT_SPEC_INFO_INIT;
  const lowbit_adafactor_info_t adafactor = LOWBIT_ADAFACTOR_INFO_INIT;
  const lowbit_cpu_info_t cpu = LOWBIT_CPU_INFO_INIT;
  const lowbit_cuda_info_t cuda = LOWBIT_CUDA_INFO_INIT;
  const lowbit_tensor_info_t tensor = LOWBIT_TENSOR_INFO_INIT;
  const lowbit_plan_info_t plan = LOWBIT_PLAN_INFO_INIT;
  const lowbit_tensor_report_t report = LOWBIT_TENSOR_REPORT_INIT;
  const lowbit_buffer_info_t buffer = LOWBIT_BUFFER_INFO_INIT;
  const lowbit_stage_info_t stage = LOWBIT_STAGE_INFO_INIT;
  const lowbit_step_args_t args = LOWBIT_STEP_ARGS_INIT;
  const lowbit_offload_info_t offload = LOWBIT_OFFLOAD_INFO_INIT;
  const lowbit_checkpoint_info_t checkpoint = LOWBIT_CHECKPOINT_INFO_INIT;
  const lowbit_save_args_t save = LOWBIT_SAVE_ARGS_INIT;
  const lowbit_load_args_t load = LOWBIT_LOAD_ARGS_INIT;
  const int sizes = quantizer.struct_size == sizeof quantizer && rule.struct_size == sizeof rule &&
                    spec.struct_size == sizeof spec && cpu.struct_size == sizeof cpu &&
                    adafactor.struct_size == sizeof adafactor &&
                    cuda.struct_size == sizeof cuda && tensor.struct_size == sizeof tensor &&
                    plan.struct_size == sizeof plan && report.struct_size == sizeof report &&
                    buffer.struct_size == sizeof buffer && stage.struct_size == sizeof stage &&
                    args.struct_size == sizeof args && offload.struct_size == sizeof offload &&
                    save.struct_size == sizeof save && load.struct_size == sizeof load &&
                    checkpoint.struct_size == sizeof checkpoint;
  uint32_t major = 1000;
  uint32_t minor = 1000;
  const lowbit_status_t status = lowbit_abi_version(&major, &minor);
  return sizes && status == LOWBIT_STATUS_OK && major == LOWBIT_ABI_MAJOR &&
                 minor == LOWBIT_ABI_MINOR && abi_is_mine_too()
             ? 0
             : 1;
}
