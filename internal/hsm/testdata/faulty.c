// A PKCS#11 module for tests: SoftHSM with faults. Beside the library lies a
// control file (library path + ".ctl"), mapped by both sides: per function of
// the function list a return code, how many calls it applies to (-1: all), a
// delay, and how often the function was called and succeeded.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

typedef unsigned long ul;
typedef struct {
	volatile int32_t rv, count, delay_ms, calls, succeeded;
} control;
typedef struct {
	unsigned char version[2];
	void *fn[68];
} function_list;

static control *controls;
static function_list list, *real;

static void enter(int f, ul *rv)
{
	control *c = &controls[f];
	__atomic_add_fetch(&c->calls, 1, __ATOMIC_SEQ_CST);
	if (c->delay_ms) {
		struct timespec t = {c->delay_ms / 1000, (c->delay_ms % 1000) * 1000000L};
		nanosleep(&t, NULL);
	}
	*rv = 0;
	int32_t left = __atomic_load_n(&c->count, __ATOMIC_SEQ_CST);
	if (left != 0) {
		if (left > 0)
			__atomic_sub_fetch(&c->count, 1, __ATOMIC_SEQ_CST);
		*rv = (ul)c->rv;
	}
}

static ul leave(int f, ul rv)
{
	if (rv == 0)
		__atomic_add_fetch(&controls[f].succeeded, 1, __ATOMIC_SEQ_CST);
	return rv;
}

static int ends(int f) { return f == 30 || f == 34 || f == 43; }

#define WRAP(name, f, params, args)                        \
	static ul name params                                  \
	{                                                      \
		ul rv;                                             \
		enter(f, &rv);                                     \
		if (rv != 0) {                                     \
			if (ends(f)) /* a failed call ends its operation, too */ \
				((ul(*) params)real->fn[f])args;           \
			return rv;                                     \
		}                                                  \
		return leave(f, ((ul(*) params)real->fn[f])args); \
	}

WRAP(OpenSession, 12, (ul a, ul b, void *c, void *d, ul *e), (a, b, c, d, e))
WRAP(CloseSession, 13, (ul a), (a))
WRAP(Login, 18, (ul a, ul b, void *c, ul d), (a, b, c, d))
WRAP(DestroyObject, 22, (ul a, ul b), (a, b))
WRAP(EncryptInit, 29, (ul a, void *b, ul c), (a, b, c))
WRAP(Encrypt, 30, (ul a, void *b, ul c, void *d, ul *e), (a, b, c, d, e))
WRAP(DecryptInit, 33, (ul a, void *b, ul c), (a, b, c))
WRAP(Decrypt, 34, (ul a, void *b, ul c, void *d, ul *e), (a, b, c, d, e))
WRAP(Sign, 43, (ul a, void *b, ul c, void *d, ul *e), (a, b, c, d, e))
WRAP(GenerateKey, 58, (ul a, void *b, void *c, ul d, ul *e), (a, b, c, d, e))
WRAP(WrapKey, 60, (ul a, void *b, ul c, ul d, void *e, ul *f), (a, b, c, d, e, f))
WRAP(UnwrapKey, 61, (ul a, void *b, ul c, void *d, ul e, void *f, ul g, ul *h), (a, b, c, d, e, f, g, h))
WRAP(GenerateRandom, 64, (ul a, void *b, ul c), (a, b, c))

// The process has initialised SoftHSM already, by its own name.
static ul Initialize(void *a)
{
	ul rv = ((ul(*)(void *))real->fn[0])(a);
	return rv == 0x191 ? 0 : rv;
}

static ul Finalize(void *a) { return 0; }

ul C_GetFunctionList(function_list **out)
{
	if (real == NULL) {
		Dl_info self;
		char path[4096];
		dladdr((void *)C_GetFunctionList, &self);
		snprintf(path, sizeof path, "%s.ctl", self.dli_fname);
		int fd = open(path, O_RDWR);
		if (fd < 0)
			return 5;
		controls = mmap(NULL, 68 * sizeof(control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (controls == MAP_FAILED)
			return 5;
		void *h = dlopen(SOFTHSM, RTLD_NOW);
		if (h == NULL)
			return 5;
		ul (*get)(function_list **) = (ul(*)(function_list **))dlsym(h, "C_GetFunctionList");
		if (get == NULL || get(&real) != 0)
			return 5;
		list = *real;
		list.fn[0] = Initialize;
		list.fn[1] = Finalize;
		list.fn[3] = C_GetFunctionList;
		list.fn[12] = OpenSession;
		list.fn[13] = CloseSession;
		list.fn[18] = Login;
		list.fn[22] = DestroyObject;
		list.fn[29] = EncryptInit;
		list.fn[30] = Encrypt;
		list.fn[33] = DecryptInit;
		list.fn[34] = Decrypt;
		list.fn[43] = Sign;
		list.fn[58] = GenerateKey;
		list.fn[60] = WrapKey;
		list.fn[61] = UnwrapKey;
		list.fn[64] = GenerateRandom;
	}
	*out = &list;
	return 0;
}
