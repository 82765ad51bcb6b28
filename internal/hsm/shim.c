#include "shim.h"

#include <dlfcn.h>
#include <malloc.h>
#include <stddef.h>
#include <string.h>

enum {
	GCM_IV = 12,
	GCM_TAG = 16,
	WRAPPED_LEN = 40, // AES-256 under AES key wrap (RFC 3394)
};

enum {
	CKM_AES_KEY_GEN = 0x1080,
	CKM_AES_GCM = 0x1087,
	CKM_AES_KEY_WRAP = 0x2109,
};

enum {
	CKR_OK = 0x0,
	CKR_GENERAL_ERROR = 0x5,
	CKR_FUNCTION_FAILED = 0x6,
	CKR_ARGUMENTS_BAD = 0x7,
	CKR_DATA_INVALID = 0x20,
	CKR_DATA_LEN_RANGE = 0x21,
	CKR_ENCRYPTED_DATA_INVALID = 0x40,
	CKR_ENCRYPTED_DATA_LEN_RANGE = 0x41,
	CKR_AEAD_DECRYPT_FAILED = 0x42, // PKCS#11 v3.0
	CKR_SIGNATURE_INVALID = 0xC0,
	CKR_WRAPPED_KEY_INVALID = 0x110,
	CKR_WRAPPED_KEY_LEN_RANGE = 0x112,
};

// CK_FUNCTION_LIST: the version, then the functions in the order of the
// standard (PKCS#11 v2.40, pkcs11f.h).
typedef struct {
	unsigned char version[2];
	void *fn[68];
} function_list;

enum {
	F_DestroyObject = 22,
	F_EncryptInit = 29,
	F_Encrypt = 30,
	F_DecryptInit = 33,
	F_Decrypt = 34,
	F_SignInit = 42,
	F_Sign = 43,
	F_GenerateKey = 58,
	F_WrapKey = 60,
	F_UnwrapKey = 61,
	F_GenerateRandom = 64,
};

typedef ck_ulong (*fn_get_list)(function_list **);
typedef ck_ulong (*fn_init)(ck_ulong, ck_mechanism *, ck_ulong);
typedef ck_ulong (*fn_data)(ck_ulong, unsigned char *, ck_ulong, unsigned char *, ck_ulong *);
typedef ck_ulong (*fn_destroy)(ck_ulong, ck_ulong);
typedef ck_ulong (*fn_generate)(ck_ulong, ck_mechanism *, ck_attribute *, ck_ulong, ck_ulong *);
typedef ck_ulong (*fn_wrap)(ck_ulong, ck_mechanism *, ck_ulong, ck_ulong, unsigned char *, ck_ulong *);
typedef ck_ulong (*fn_unwrap)(ck_ulong, ck_mechanism *, ck_ulong, unsigned char *, ck_ulong, ck_attribute *, ck_ulong, ck_ulong *);
typedef ck_ulong (*fn_random)(ck_ulong, unsigned char *, ck_ulong);

static void *fn(void *module, int f) { return ((function_list *)module)->fn[f]; }

// bad_data says whether rv may only mean that this one input is bad, so that
// the batch goes on. Which it is, a canary decides afterwards.
static int bad_data(ck_ulong rv)
{
	switch (rv) {
	case CKR_GENERAL_ERROR:
	case CKR_FUNCTION_FAILED:
	case CKR_DATA_INVALID:
	case CKR_DATA_LEN_RANGE:
	case CKR_ENCRYPTED_DATA_INVALID:
	case CKR_ENCRYPTED_DATA_LEN_RANGE:
	case CKR_AEAD_DECRYPT_FAILED:
	case CKR_SIGNATURE_INVALID:
	case CKR_WRAPPED_KEY_INVALID:
	case CKR_WRAPPED_KEY_LEN_RANGE:
		return 1;
	}
	return 0;
}

// wipe clears memory in a way the compiler may not leave out.
static void wipe(unsigned char *p, uint64_t len)
{
	volatile unsigned char *v = p;
	while (len-- > 0) {
		*v++ = 0;
	}
}

static int is_given_up(const int64_t *given_up)
{
	return given_up != NULL && __atomic_load_n(given_up, __ATOMIC_ACQUIRE) < 0;
}

static int within(uint64_t offset, uint64_t len, uint64_t total)
{
	return offset <= total && len <= total - offset;
}

#ifdef M_ARENA_MAX
// A module in this process makes and destroys many small objects, from whichever
// thread: with an arena for each, much of what it freed stays. Before main, as it
// is too late for threads that have one.
__attribute__((constructor)) static void one_arena(void)
{
	mallopt(M_ARENA_MAX, 1);
}
#endif

void kluis_trim(void)
{
#ifdef __GLIBC__
	malloc_trim(0);
#endif
}

void *kluis_load(const char *path)
{
	function_list *list = NULL;
	void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (handle == NULL) {
		return NULL;
	}
	fn_get_list get = (fn_get_list)dlsym(handle, "C_GetFunctionList");
	if (get == NULL || get(&list) != CKR_OK || list == NULL) {
		dlclose(handle);
		return NULL;
	}
	static const int used[] = {F_DestroyObject, F_EncryptInit, F_Encrypt, F_DecryptInit, F_Decrypt, F_SignInit,
		F_Sign, F_GenerateKey, F_WrapKey, F_UnwrapKey, F_GenerateRandom};
	for (size_t i = 0; i < sizeof used / sizeof used[0]; i++) {
		if (list->fn[used[i]] == NULL) {
			dlclose(handle);
			return NULL;
		}
	}
	return list;
}

int kluis_gcm(void *module, const int64_t *given_up, ck_ulong session, int encrypt, kluis_gcm_item *items, int n,
	unsigned char *in, uint64_t in_len, unsigned char *out, uint64_t out_len)
{
	fn_init init = (fn_init)fn(module, encrypt ? F_EncryptInit : F_DecryptInit);
	fn_data data = (fn_data)fn(module, encrypt ? F_Encrypt : F_Decrypt);

	for (int i = 0; i < n; i++) {
		kluis_gcm_item *it = &items[i];
		if (it->key == 0) {
			continue;
		}
		if (!within(it->iv, GCM_IV, in_len) || !within(it->aad, it->aad_len, in_len) ||
			!within(it->data, it->data_len, in_len) || !within(it->out, it->out_len, out_len)) {
			it->rv = CKR_ARGUMENTS_BAD;
			return i;
		}
		ck_gcm_params params = {in + it->iv, GCM_IV, GCM_IV * 8, in + it->aad, it->aad_len, GCM_TAG * 8};
		ck_mechanism mechanism = {CKM_AES_GCM, &params, sizeof params};
		ck_ulong len = it->out_len;

		if (is_given_up(given_up)) {
			return i;
		}
		it->rv = init(session, &mechanism, it->key);
		if (it->rv != CKR_OK) {
			return i; // before any data was seen: never the data's fault
		}
		if (is_given_up(given_up)) {
			return i;
		}
		it->rv = data(session, in + it->data, it->data_len, out + it->out, &len);
		if (it->rv == CKR_OK && len > it->out_len) {
			it->rv = CKR_GENERAL_ERROR; // it wrote beyond its room, or lies
		}
		if (it->rv == CKR_OK) {
			it->out_len = len;
			continue;
		}
		// Some modules decrypt before they check the tag.
		wipe(out + it->out, it->out_len);
		if (!bad_data(it->rv)) {
			return i;
		}
	}
	return n;
}

int kluis_unwrap(void *module, const int64_t *given_up, ck_ulong session, kluis_unwrap_item *items, int n,
	unsigned char *in, uint64_t in_len, ck_attribute *template, int template_len)
{
	fn_unwrap unwrap = (fn_unwrap)fn(module, F_UnwrapKey);
	ck_mechanism mechanism = {CKM_AES_KEY_WRAP, NULL, 0};

	for (int i = 0; i < n; i++) {
		kluis_unwrap_item *it = &items[i];
		if (it->kek == 0) {
			continue;
		}
		if (!within(it->wrapped, it->wrapped_len, in_len) || it->wrapped_len != WRAPPED_LEN) {
			it->rv = CKR_ARGUMENTS_BAD;
			return i;
		}
		if (is_given_up(given_up)) {
			return i;
		}
		ck_ulong key = 0;
		it->rv = unwrap(session, &mechanism, it->kek, in + it->wrapped, it->wrapped_len,
			template, template_len, &key);
		if (it->rv == CKR_OK && key == 0) {
			it->rv = CKR_GENERAL_ERROR; // 0 is no handle, and means skip to kluis_gcm
		}
		if (it->rv == CKR_OK) {
			it->key = key;
		} else if (!bad_data(it->rv)) {
			return i;
		}
	}
	return n;
}

ck_ulong kluis_destroy(void *module, const int64_t *given_up, ck_ulong session, uint64_t *objects, int n)
{
	fn_destroy destroy = (fn_destroy)fn(module, F_DestroyObject);
	ck_ulong first = CKR_OK;
	for (int i = 0; i < n && !is_given_up(given_up); i++) {
		ck_ulong rv = destroy(session, objects[i]);
		if (rv != CKR_OK && first == CKR_OK) {
			first = rv; // and go on: the others must not leak
		}
	}
	return first;
}

ck_ulong kluis_sign(void *module, const int64_t *given_up, ck_ulong session, ck_ulong mechanism, ck_ulong key, kluis_mac_item *items, int n,
	unsigned char *in, uint64_t in_len, unsigned char *out, uint64_t out_len, uint32_t each)
{
	fn_init init = (fn_init)fn(module, F_SignInit);
	fn_data sign = (fn_data)fn(module, F_Sign);
	ck_mechanism m = {mechanism, NULL, 0};

	for (int i = 0; i < n; i++) {
		if (!within(items[i].data, items[i].data_len, in_len) || !within((uint64_t)i * each, each, out_len)) {
			return CKR_ARGUMENTS_BAD;
		}
		if (is_given_up(given_up)) {
			return CKR_FUNCTION_FAILED;
		}
		ck_ulong rv = init(session, &m, key);
		if (rv != CKR_OK) {
			return rv;
		}
		if (is_given_up(given_up)) {
			return CKR_FUNCTION_FAILED;
		}
		ck_ulong len = each;
		rv = sign(session, in + items[i].data, items[i].data_len, out + (uint64_t)i * each, &len);
		if (rv != CKR_OK) {
			return rv;
		}
		if (len != each) {
			return CKR_GENERAL_ERROR;
		}
	}
	return CKR_OK;
}

ck_ulong kluis_mint(void *module, const int64_t *given_up, ck_ulong session, ck_ulong kek, ck_attribute *template, int template_len,
	unsigned char *wrapped, uint64_t wrapped_len, int n)
{
	fn_generate generate = (fn_generate)fn(module, F_GenerateKey);
	fn_wrap wrap = (fn_wrap)fn(module, F_WrapKey);
	fn_destroy destroy = (fn_destroy)fn(module, F_DestroyObject);
	ck_mechanism generation = {CKM_AES_KEY_GEN, NULL, 0};
	ck_mechanism wrapping = {CKM_AES_KEY_WRAP, NULL, 0};

	for (int i = 0; i < n; i++) {
		if (!within((uint64_t)i * WRAPPED_LEN, WRAPPED_LEN, wrapped_len)) {
			return CKR_ARGUMENTS_BAD;
		}
		if (is_given_up(given_up)) {
			return CKR_FUNCTION_FAILED;
		}
		ck_ulong key = 0, len = WRAPPED_LEN;
		ck_ulong rv = generate(session, &generation, template, template_len, &key);
		if (rv != CKR_OK) {
			return rv;
		}
		if (is_given_up(given_up)) {
			return CKR_FUNCTION_FAILED;
		}
		rv = wrap(session, &wrapping, kek, key, wrapped + (size_t)i * WRAPPED_LEN, &len);
		if (is_given_up(given_up)) {
			return CKR_FUNCTION_FAILED;
		}
		ck_ulong destroyed = destroy(session, key);
		if (rv != CKR_OK) {
			return rv;
		}
		if (destroyed != CKR_OK) {
			return destroyed;
		}
		if (len != WRAPPED_LEN) {
			return CKR_GENERAL_ERROR;
		}
	}
	return CKR_OK;
}

typedef struct {
	void *module;
	const int64_t *given_up;
	ck_ulong session;
	ck_attribute *template;
	int template_len;
	int unwrapped; // the last pass got as far as that
} rewrapper;

// pass unwraps wrapped under from and wraps the key under to; both have
// WRAPPED_LEN bytes.
static ck_ulong pass(rewrapper *r, ck_ulong from, unsigned char *wrapped, ck_ulong to, unsigned char *out)
{
	fn_unwrap unwrap = (fn_unwrap)fn(r->module, F_UnwrapKey);
	fn_wrap wrap = (fn_wrap)fn(r->module, F_WrapKey);
	fn_destroy destroy = (fn_destroy)fn(r->module, F_DestroyObject);
	ck_mechanism mechanism = {CKM_AES_KEY_WRAP, NULL, 0};
	ck_ulong key = 0, len = WRAPPED_LEN;

	r->unwrapped = 0;
	ck_ulong rv = unwrap(r->session, &mechanism, from, wrapped, WRAPPED_LEN, r->template, r->template_len, &key);
	if (rv != CKR_OK) {
		return rv;
	}
	r->unwrapped = 1;
	if (is_given_up(r->given_up)) {
		return CKR_FUNCTION_FAILED;
	}
	rv = wrap(r->session, &mechanism, to, key, out, &len);
	if (is_given_up(r->given_up)) {
		return CKR_FUNCTION_FAILED;
	}
	ck_ulong destroyed = destroy(r->session, key);
	if (rv != CKR_OK) {
		return rv;
	}
	if (destroyed != CKR_OK) {
		return destroyed;
	}
	return len == WRAPPED_LEN ? CKR_OK : CKR_GENERAL_ERROR;
}

int kluis_rewrap(void *module, const int64_t *given_up, ck_ulong session, ck_ulong to, kluis_rewrap_item *items, int n,
	unsigned char *in, uint64_t in_len, ck_attribute *template, int template_len, unsigned char *out, uint64_t out_len)
{
	rewrapper r = {module, given_up, session, template, template_len, 0};

	for (int i = 0; i < n; i++) {
		kluis_rewrap_item *it = &items[i];
		if (it->kek == 0) {
			continue;
		}
		if (!within(it->wrapped, it->wrapped_len, in_len) || it->wrapped_len != WRAPPED_LEN ||
			!within((uint64_t)i * WRAPPED_LEN, WRAPPED_LEN, out_len)) {
			it->rv = CKR_ARGUMENTS_BAD;
			return i;
		}
		unsigned char *mine = out + (size_t)i * WRAPPED_LEN, back[WRAPPED_LEN];
		if (is_given_up(given_up)) {
			return i;
		}
		it->rv = pass(&r, it->kek, in + it->wrapped, to, mine);
		if (it->rv != CKR_OK && !r.unwrapped && bad_data(it->rv)) {
			continue;
		}
		if (it->rv != CKR_OK || is_given_up(given_up)) {
			return i;
		}
		it->rv = pass(&r, to, mine, it->kek, back);
		if (it->rv == CKR_OK && memcmp(back, in + it->wrapped, WRAPPED_LEN) != 0) {
			it->rv = kluis_mismatch;
		}
		if (it->rv != CKR_OK) {
			wipe(mine, WRAPPED_LEN); // nobody may take it for the key
			return i;
		}
	}
	return n;
}

ck_ulong kluis_random(void *module, ck_ulong session, unsigned char *out, uint64_t out_len)
{
	return ((fn_random)fn(module, F_GenerateRandom))(session, out, out_len);
}
