// A PKCS#11 module for tests: SoftHSM with faults. Beside the library lies a
// control file (library path + ".ctl"), mapped by both sides: per function of
// the function list a fault, how many calls go well before it, how many it
// applies to (-1: all), and how often the function was called and succeeded.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

typedef unsigned long ul;

enum { RETURN, DELAY, HANG, CRASH, LIE };

typedef struct {
	volatile int32_t kind;
	volatile int32_t arg; // RETURN: the return code; DELAY: milliseconds; HANG: 0 lets go; LIE: the handle or length to tell, or the return code to pass off as CKR_OK
	volatile int32_t skip, count, calls, succeeded;
} control;

typedef struct {
	unsigned char version[2];
	void *fn[68];
} function_list;

// The slot of a function that is never wrapped: the session of the last call
// that hung, and how many calls used it since it hung.
enum { WATCH = 3 };

// Another: the slot that faults are confined to; 0: none. What names no slot,
// and no session, does not fail then.
enum { ONLY = 5 };

// Functions lie after the real call.
#define LIED 0x8000FA15UL

static control *controls;
static function_list list, *real;

static void sleep_ms(int ms)
{
	struct timespec t = {ms / 1000, (ms % 1000) * 1000000L};
	nanosleep(&t, NULL);
}

// take claims one of a counter's remaining units; -1 never runs out.
static int take(volatile int32_t *n)
{
	int32_t left = __atomic_load_n(n, __ATOMIC_SEQ_CST);
	while (left > 0) {
		if (__atomic_compare_exchange_n(n, &left, left - 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
			return 1;
	}
	return left < 0;
}

// Which slot a session is of. Handles grow; none of a test lives so long that
// its place is needed again.
enum { SESSIONS = 1 << 16 };
static struct { volatile ul session, slot; } sessions[SESSIONS];

static void opened(ul session, ul slot)
{
	sessions[session % SESSIONS].slot = slot;
	sessions[session % SESSIONS].session = session;
}

static int spared(ul session, ul slot)
{
	ul only = (ul)__atomic_load_n(&controls[ONLY].arg, __ATOMIC_SEQ_CST);
	if (session != 0 && sessions[session % SESSIONS].session == session)
		slot = sessions[session % SESSIONS].slot;
	return only != 0 && slot != only;
}

static ul enter_slot(int f, ul session, ul slot)
{
	control *c = &controls[f], *watch = &controls[WATCH];
	__atomic_add_fetch(&c->calls, 1, __ATOMIC_SEQ_CST);
	if (session != 0 && (ul)__atomic_load_n(&watch->arg, __ATOMIC_SEQ_CST) == session)
		__atomic_add_fetch(&watch->calls, 1, __ATOMIC_SEQ_CST);
	if (spared(session, slot) || take(&c->skip) || !take(&c->count))
		return 0;
	switch (c->kind) {
	case DELAY:
		sleep_ms(c->arg);
		return 0;
	case HANG:
		__atomic_store_n(&watch->arg, (int32_t)session, __ATOMIC_SEQ_CST);
		while (__atomic_load_n(&c->arg, __ATOMIC_SEQ_CST) != 0)
			sleep_ms(2);
		return 0;
	case CRASH:
		abort();
	case LIE:
		return LIED;
	}
	return (ul)(uint32_t)c->arg;
}

static ul enter(int f, ul session) { return enter_slot(f, session, 0); }

static ul leave(int f, ul rv)
{
	if (rv == 0)
		__atomic_add_fetch(&controls[f].succeeded, 1, __ATOMIC_SEQ_CST);
	return rv;
}

// ends says whether a call that fails so ends its operation, as the standard
// has it: CKR_BUFFER_TOO_SMALL does not.
static int ends(int f, ul rv) { return (f == 30 || f == 34 || f == 43) && rv != 0x150; }

static ul lie(int f, ul got) { return got == (ul)(uint32_t)controls[f].arg ? 0 : got; }

#define WRAP(name, f, session, params, args)               \
	static ul name params                                  \
	{                                                      \
		ul rv = enter(f, session);                         \
		if (rv == LIED) {                                  \
			ul got = ((ul(*) params)real->fn[f])args;      \
			return leave(f, lie(f, got));                  \
		}                                                  \
		if (rv != 0) {                                     \
			if (ends(f, rv))                               \
				((ul(*) params)real->fn[f])args;           \
			return rv;                                     \
		}                                                  \
		return leave(f, ((ul(*) params)real->fn[f])args); \
	}

WRAP(GetSlotList, 4, 0, (unsigned char a, void *b, ul *c), (a, b, c))
static ul GetTokenInfo(ul a, void *b)
{
	ul rv = enter_slot(6, 0, a);
	return rv != 0 ? rv : leave(6, ((ul(*)(ul, void *))real->fn[6])(a, b));
}
static ul OpenSession(ul a, ul b, void *c, void *d, ul *e)
{
	ul rv = enter_slot(12, 0, a);
	if (rv == 0)
		rv = leave(12, ((ul(*)(ul, ul, void *, void *, ul *))real->fn[12])(a, b, c, d, e));
	if (rv == 0)
		opened(*e, a);
	return rv;
}
WRAP(CloseSession, 13, a, (ul a), (a))
WRAP(Login, 18, a, (ul a, ul b, void *c, ul d), (a, b, c, d))
WRAP(CreateObject, 20, a, (ul a, void *b, ul c, ul *d), (a, b, c, d))
WRAP(CopyObject, 21, a, (ul a, ul b, void *c, ul d, ul *e), (a, b, c, d, e))
WRAP(DestroyObject, 22, a, (ul a, ul b), (a, b))
WRAP(GetAttributeValue, 24, a, (ul a, ul b, void *c, ul d), (a, b, c, d))
WRAP(SetAttributeValue, 25, a, (ul a, ul b, void *c, ul d), (a, b, c, d))
WRAP(FindObjectsInit, 26, a, (ul a, void *b, ul c), (a, b, c))
WRAP(FindObjects, 27, a, (ul a, ul *b, ul c, ul *d), (a, b, c, d))
WRAP(FindObjectsFinal, 28, a, (ul a), (a))
// EncryptInit, of AES-GCM, lies by making the IV itself.
static ul EncryptInit(ul a, void *b, ul c)
{
	struct {
		ul mechanism;
		struct {
			unsigned char *iv;
		} *parameter;
	} *m = b;
	ul rv = enter(29, a);
	if (rv != 0 && rv != LIED)
		return rv;
	if (rv == LIED && m->mechanism == 0x1087) {
		uint32_t n = (uint32_t)__atomic_add_fetch(&controls[29].arg, 1, __ATOMIC_SEQ_CST);
		memset(m->parameter->iv, 0xAA, 12);
		memcpy(m->parameter->iv, &n, sizeof n);
	}
	return leave(29, ((ul(*)(ul, void *, ul))real->fn[29])(a, b, c));
}
WRAP(Encrypt, 30, a, (ul a, void *b, ul c, void *d, ul *e), (a, b, c, d, e))
WRAP(DecryptInit, 33, a, (ul a, void *b, ul c), (a, b, c))
static ul Decrypt(ul a, void *b, ul c, void *d, ul *e)
{
	ul rv = enter(34, a);
	if (rv != 0 && rv != LIED && !ends(34, rv))
		return rv;
	ul got = ((ul(*)(ul, void *, ul, void *, ul *))real->fn[34])(a, b, c, d, e);
	if (rv == LIED && got == 0) {
		*e = (ul)controls[34].arg;
		rv = 0;
	}
	if (rv == 0)
		rv = got;
	return leave(34, rv);
}
WRAP(SignInit, 42, a, (ul a, void *b, ul c), (a, b, c))
WRAP(Sign, 43, a, (ul a, void *b, ul c, void *d, ul *e), (a, b, c, d, e))
WRAP(GenerateKey, 58, a, (ul a, void *b, void *c, ul d, ul *e), (a, b, c, d, e))
// WrapKey lies, with 0, of bytes that it changed.
static ul WrapKey(ul a, void *b, ul c, ul d, unsigned char *e, ul *f)
{
	ul rv = enter(60, a);
	if (rv != 0 && rv != LIED)
		return rv;
	ul got = ((ul(*)(ul, void *, ul, ul, void *, ul *))real->fn[60])(a, b, c, d, e, f);
	if (rv == LIED && got == 0 && controls[60].arg == 0 && e != NULL && *f > 0)
		e[0] ^= 1;
	return leave(60, rv == LIED ? lie(60, got) : got);
}
static ul UnwrapKey(ul a, void *b, ul c, void *d, ul e, void *f, ul g, ul *h)
{
	ul rv = enter(61, a);
	if (rv != 0 && rv != LIED)
		return rv;
	ul got = ((ul(*)(ul, void *, ul, void *, ul, void *, ul, ul *))real->fn[61])(a, b, c, d, e, f, g, h);
	if (rv == LIED && got == 0)
		*h = (ul)controls[61].arg;
	return leave(61, got);
}
WRAP(GenerateRandom, 64, a, (ul a, void *b, ul c), (a, b, c))

// The process has initialised SoftHSM already, by its own name.
static ul Initialize(void *a)
{
	ul rv = enter(0, 0);
	if (rv != 0)
		return rv;
	rv = ((ul(*)(void *))real->fn[0])(a);
	return leave(0, rv == 0x191 ? 0 : rv);
}

static ul Finalize(void *a)
{
	ul rv = enter(1, 0);
	return rv != 0 ? rv : leave(1, 0);
}

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
		list.fn[4] = GetSlotList;
		list.fn[6] = GetTokenInfo;
		list.fn[12] = OpenSession;
		list.fn[13] = CloseSession;
		list.fn[18] = Login;
		list.fn[20] = CreateObject;
		list.fn[21] = CopyObject;
		list.fn[22] = DestroyObject;
		list.fn[24] = GetAttributeValue;
		list.fn[25] = SetAttributeValue;
		list.fn[26] = FindObjectsInit;
		list.fn[27] = FindObjects;
		list.fn[28] = FindObjectsFinal;
		list.fn[29] = EncryptInit;
		list.fn[30] = Encrypt;
		list.fn[33] = DecryptInit;
		list.fn[34] = Decrypt;
		list.fn[42] = SignInit;
		list.fn[43] = Sign;
		list.fn[58] = GenerateKey;
		list.fn[60] = WrapKey;
		list.fn[61] = UnwrapKey;
		list.fn[64] = GenerateRandom;
	}
	*out = &list;
	return 0;
}
