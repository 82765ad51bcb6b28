// The data path's own PKCS#11 calls: many operations per crossing into C,
// the caller's buffers, one module call per operation, no heap.
//
// Everything is passed by flat buffers and offsets, so that no memory of Go
// holds a pointer; C allocates nothing and so leaves no plaintext behind.

#ifndef KLUIS_HSM_SHIM_H
#define KLUIS_HSM_SHIM_H

#include <stdint.h>

// PKCS#11 v2.40 types, only those used here. Unix modules use the natural
// alignment of the platform.
typedef unsigned long ck_ulong;

typedef struct {
	ck_ulong type;
	void *value;
	ck_ulong len;
} ck_attribute;

typedef struct {
	ck_ulong mechanism;
	void *parameter;
	ck_ulong len;
} ck_mechanism;

typedef struct {
	unsigned char *iv;
	ck_ulong iv_len;
	ck_ulong iv_bits;
	unsigned char *aad;
	ck_ulong aad_len;
	ck_ulong tag_bits;
} ck_gcm_params;

enum { kluis_not_run = 0xFFFFFFFF }; // rv of an operation that was not tried

// One AES-GCM operation. key 0: skip.
typedef struct {
	uint64_t key;
	uint64_t rv;
	uint32_t iv;  // offset into in; 12 bytes
	uint32_t aad; // offset into in
	uint32_t aad_len;
	uint32_t data; // offset into in
	uint32_t data_len;
	uint32_t out;     // offset into out
	uint32_t out_len; // capacity, then length
} kluis_gcm_item;

// One AES key unwrap. kek 0: skip.
typedef struct {
	uint64_t kek;
	uint64_t rv;
	uint64_t key; // the handle made, 0 if none
	uint32_t wrapped; // offset into in
	uint32_t wrapped_len;
} kluis_unwrap_item;

// One HMAC or signature.
typedef struct {
	uint32_t data; // offset into in
	uint32_t data_len;
} kluis_mac_item;

// One rewrap: a key unwrapped and wrapped anew, to 40 bytes of out at the
// item's own index. kek 0: skip.
typedef struct {
	uint64_t kek; // it is wrapped under
	uint64_t rv;
	uint32_t wrapped; // offset into in
	uint32_t wrapped_len;
} kluis_rewrap_item;

enum { kluis_mismatch = 0xFFFFFFFE }; // rv of a rewrap that came out as another key

// kluis_load opens the module for the rest of the process's life and gives its
// function list, or NULL, also when it lacks a function used here. It does not
// call C_Initialize.
void *kluis_load(const char *path);

// kluis_trim gives memory back to the system that was freed, where the C
// library can.
void kluis_trim(void);

// A call that was given up (*given_up < 0; NULL: it cannot be) touches its
// session no more: it returns before the next call of the module.

// Each returns how many items were worked through: n, or fewer when an error
// other than bad data stopped it (the item's rv tells).
int kluis_gcm(void *module, const int64_t *given_up, ck_ulong session, int encrypt, kluis_gcm_item *items, int n,
	unsigned char *in, uint64_t in_len, unsigned char *out, uint64_t out_len);
int kluis_unwrap(void *module, const int64_t *given_up, ck_ulong session, kluis_unwrap_item *items, int n,
	unsigned char *in, uint64_t in_len, ck_attribute *template, int template_len);

// kluis_rewrap wraps under the KEK to, and then unwraps that and wraps it as it
// came: only if the same bytes come out is it the same key. No key it makes
// outlives it, but with a call that was given up.
int kluis_rewrap(void *module, const int64_t *given_up, ck_ulong session, ck_ulong to, kluis_rewrap_item *items, int n,
	unsigned char *in, uint64_t in_len, ck_attribute *template, int template_len, unsigned char *out, uint64_t out_len);

// Each returns the first rv that is not CKR_OK; outputs whose length is another
// than the caller's are CKR_GENERAL_ERROR.
ck_ulong kluis_destroy(void *module, const int64_t *given_up, ck_ulong session, uint64_t *objects, int n);
ck_ulong kluis_sign(void *module, const int64_t *given_up, ck_ulong session, ck_ulong mechanism, ck_ulong key, kluis_mac_item *items, int n,
	unsigned char *in, uint64_t in_len, unsigned char *out, uint64_t out_len, uint32_t each);
ck_ulong kluis_mint(void *module, const int64_t *given_up, ck_ulong session, ck_ulong kek, ck_attribute *template, int template_len,
	unsigned char *wrapped, uint64_t wrapped_len, int n);
ck_ulong kluis_random(void *module, ck_ulong session, unsigned char *out, uint64_t out_len);

#endif
