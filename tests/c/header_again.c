/* The other unit of header.c. */

#include "lowbit.h"
#include "lowbit.h"

#ifdef __cplusplus
extern "C"
#endif
int abi_is_mine_too(void);

int abi_is_mine_too(void) {
  uint32_t major = 1000;
  uint32_t minor = 1000;
  return lowbit_abi_version(&major, &minor) == LOWBIT_STATUS_OK && major == LOWBIT_ABI_MAJOR;
}
