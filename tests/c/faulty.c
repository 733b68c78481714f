/*
 * A leak and a read of memory that was never written: what valgrind must report, as proof that the
 * clean runs of the other programs mean something.
 */

#include <stdio.h>
#include <stdlib.h>

int main(void) {
  int *volatile numbers = (int *)malloc(10 * sizeof *numbers);
  if (numbers != NULL && numbers[3] == 77) puts("by chance");
  numbers = NULL;
  return 0;
}
