package main

/*
#cgo linux LDFLAGS: -ldl
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef unsigned long ulong_t;
typedef struct { ulong_t type; void *value; ulong_t len; } attribute_t;
typedef struct { ulong_t mechanism; void *parameter; ulong_t len; } mechanism_t;
typedef struct { unsigned char *iv; ulong_t iv_len, iv_bits; unsigned char *aad; ulong_t aad_len, tag_bits; } gcm_t;
typedef struct { unsigned char version[2]; void *fn[68]; } list_t; // CK_FUNCTION_LIST

enum { DestroyObject = 22, DecryptInit = 33, Decrypt = 34, WrapKey = 60, UnwrapKey = 61 }; // their places in it
enum { AES_GCM = 0x1087, AES_KEY_WRAP = 0x2109 };

typedef struct {
	int key;
	unsigned char *iv, *aad, *data;
	ulong_t iv_len, aad_len, data_len;
} item_t;

typedef struct {
	list_t *list;
	ulong_t session, kek;
	attribute_t *template;
	ulong_t template_len;
	int keys, items;
	unsigned char *wrapped; // 40 bytes each
	ulong_t *handles;
	item_t *item;
	unsigned char *out;
	ulong_t out_len;
} batch_t;

static list_t *load(const char *path)
{
	list_t *list = NULL;
	void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (handle == NULL)
		return NULL;
	ulong_t (*get)(list_t **) = (ulong_t (*)(list_t **))dlsym(handle, "C_GetFunctionList");
	if (get == NULL || get(&list) != 0)
		return NULL;
	return list;
}

static void set_attribute(attribute_t *a, int i, ulong_t type, void *value, ulong_t len)
{
	a[i].type = type;
	a[i].value = value;
	a[i].len = len;
}

static void set_item(item_t *items, int i, int key, void *iv, ulong_t iv_len, void *aad, ulong_t aad_len, void *data, ulong_t data_len)
{
	item_t it = {key, iv, aad, data, iv_len, aad_len, data_len};
	items[i] = it;
}

static ulong_t unwrap(batch_t *b)
{
	ulong_t (*f)(ulong_t, mechanism_t *, ulong_t, unsigned char *, ulong_t, attribute_t *, ulong_t, ulong_t *) = b->list->fn[UnwrapKey];
	mechanism_t m = {AES_KEY_WRAP, NULL, 0};
	for (int i = 0; i < b->keys; i++) {
		ulong_t rv = f(b->session, &m, b->kek, b->wrapped + 40 * i, 40, b->template, b->template_len, &b->handles[i]);
		if (rv != 0)
			return rv;
	}
	return 0;
}

static ulong_t destroy(batch_t *b)
{
	ulong_t (*f)(ulong_t, ulong_t) = b->list->fn[DestroyObject];
	for (int i = 0; i < b->keys; i++) {
		ulong_t rv = f(b->session, b->handles[i]);
		if (rv != 0)
			return rv;
	}
	return 0;
}

static ulong_t decrypt(batch_t *b)
{
	ulong_t (*init)(ulong_t, mechanism_t *, ulong_t) = b->list->fn[DecryptInit];
	ulong_t (*f)(ulong_t, unsigned char *, ulong_t, unsigned char *, ulong_t *) = b->list->fn[Decrypt];
	for (int i = 0; i < b->items; i++) {
		item_t *it = &b->item[i];
		gcm_t p = {it->iv, it->iv_len, it->iv_len * 8, it->aad, it->aad_len, 128};
		mechanism_t m = {AES_GCM, &p, sizeof p};
		ulong_t len = b->out_len;
		ulong_t rv = init(b->session, &m, b->handles[it->key]);
		if (rv == 0)
			rv = f(b->session, it->data, it->data_len, b->out, &len);
		if (rv == 0 && len != it->data_len - 16)
			rv = 5;
		if (rv != 0)
			return rv;
	}
	return 0;
}

// once does the batch; cold: with fresh keys, which do not stay.
static ulong_t once(batch_t *b, int cold)
{
	ulong_t rv;
	if (cold && (rv = unwrap(b)) != 0)
		return rv;
	if ((rv = decrypt(b)) != 0)
		return rv;
	return cold ? destroy(b) : 0;
}

// pass takes a wrapped key to another KEK: here to the same.
static ulong_t pass(batch_t *b, unsigned char *wrapped, unsigned char *out)
{
	ulong_t (*unwrap)(ulong_t, mechanism_t *, ulong_t, unsigned char *, ulong_t, attribute_t *, ulong_t, ulong_t *) = b->list->fn[UnwrapKey];
	ulong_t (*wrap)(ulong_t, mechanism_t *, ulong_t, ulong_t, unsigned char *, ulong_t *) = b->list->fn[WrapKey];
	ulong_t (*destroy)(ulong_t, ulong_t) = b->list->fn[DestroyObject];
	mechanism_t m = {AES_KEY_WRAP, NULL, 0};
	ulong_t key, len = 40;
	ulong_t rv = unwrap(b->session, &m, b->kek, wrapped, 40, b->template, b->template_len, &key);
	if (rv == 0)
		rv = wrap(b->session, &m, b->kek, key, out, &len);
	if (rv == 0)
		rv = destroy(b->session, key);
	return rv == 0 && len != 40 ? 5 : rv;
}

// rewrap takes all keys; proved: and each one back, to compare.
static ulong_t rewrap(batch_t *b, int proved)
{
	unsigned char out[40], back[40];
	for (int i = 0; i < b->keys; i++) {
		ulong_t rv = pass(b, b->wrapped + 40 * i, out);
		if (rv == 0 && proved && (rv = pass(b, out, back)) == 0 && memcmp(back, b->wrapped + 40 * i, 40) != 0)
			rv = 5;
		if (rv != 0)
			return rv;
	}
	return 0;
}

static long thread_cpu(void)
{
	struct timespec t;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return t.tv_sec * 1000000000L + t.tv_nsec;
}
*/
import "C"

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"
	"unsafe"

	"github.com/miekg/pkcs11"

	"kluis/cryptoserver/envelope"
)

// hsmSetup is the blocks of requests as they go into the token.
type hsmSetup struct {
	Module  string     `json:"module"`
	Label   string     `json:"label"` // of the token
	PINFile string     `json:"pin_file"`
	KEK     string     `json:"kek"`    // its label
	Rotate  bool       `json:"rotate"` // the token is of role rotate
	Batches []hsmBatch `json:"batches"`
}

type hsmBatch struct {
	Keys  [][]byte  `json:"keys"` // wrapped
	Items []hsmItem `json:"items"`
}

// add adds a batch; all keys are of one epoch.
func (s *hsmSetup) add(keys []envelope.KeyRecord, items []hsmItem) {
	b := hsmBatch{Items: items}
	for _, k := range keys {
		b.Keys = append(b.Keys, k.Wrapped)
		s.KEK = fmt.Sprintf("kluis/kek/%d", k.Epoch)
	}
	s.Batches = append(s.Batches, b)
}

type hsmItem struct {
	Key           int `json:"key"`
	IV, AAD, Data []byte
}

// hsmPart is a loop in C on one token: nothing but the module's own calls, one
// thread, which is what SoftHSM serves best.
type hsmPart struct {
	ctx     *pkcs11.Ctx
	batches []*C.batch_t
	warm    []bool // its keys are unwrapped
}

func newHSMPart(raw json.RawMessage) (worker, error) {
	var s hsmSetup
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, err
	}
	pin, err := os.ReadFile(s.PINFile)
	if err != nil {
		return nil, err
	}
	// miekg/pkcs11 for what is done once.
	p := &hsmPart{ctx: pkcs11.New(s.Module), warm: make([]bool, len(s.Batches))}
	if p.ctx == nil {
		return nil, fmt.Errorf("%s cannot be loaded", s.Module)
	}
	if err := p.ctx.Initialize(); err != nil {
		return nil, err
	}
	slot, err := findSlot(p.ctx, s.Label)
	if err != nil {
		return nil, err
	}
	session, err := p.ctx.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		return nil, err
	}
	if err := p.ctx.Login(session, pkcs11.CKU_USER, strings.TrimSpace(string(pin))); err != nil {
		return nil, err
	}
	kek, err := findKey(p.ctx, session, s.KEK)
	if err != nil {
		return nil, err
	}

	path := C.CString(s.Module)
	defer C.free(unsafe.Pointer(path))
	list := C.load(path)
	if list == nil {
		return nil, fmt.Errorf("%s has no function list", s.Module)
	}
	template := dataKeyTemplate()
	if s.Rotate {
		template = passingTemplate()
	}
	for _, b := range s.Batches {
		c, err := b.inC()
		if err != nil {
			return nil, err
		}
		c.list, c.session, c.kek = list, C.ulong_t(session), C.ulong_t(kek)
		c.template, c.template_len = cTemplate(template), C.ulong_t(len(template))
		p.batches = append(p.batches, c)
	}
	return p, nil
}

// inC copies a batch to where C finds it, for good.
func (s hsmBatch) inC() (*C.batch_t, error) {
	b := (*C.batch_t)(C.calloc(1, C.sizeof_batch_t))
	b.keys, b.items = C.int(len(s.Keys)), C.int(len(s.Items))
	var wrapped []byte
	for _, k := range s.Keys {
		if len(k) != 40 {
			return nil, errors.New("a wrapped key is not of 40 bytes")
		}
		wrapped = append(wrapped, k...)
	}
	b.wrapped = (*C.uchar)(C.CBytes(wrapped))
	b.handles = (*C.ulong_t)(C.calloc(C.size_t(len(s.Keys)), C.sizeof_ulong_t))
	b.item = (*C.item_t)(C.calloc(C.size_t(len(s.Items)), C.sizeof_item_t))
	for i, it := range s.Items {
		C.set_item(b.item, C.int(i), C.int(it.Key), C.CBytes(it.IV), C.ulong_t(len(it.IV)),
			C.CBytes(it.AAD), C.ulong_t(len(it.AAD)), C.CBytes(it.Data), C.ulong_t(len(it.Data)))
		b.out_len = max(b.out_len, C.ulong_t(len(it.Data)))
	}
	b.out = (*C.uchar)(C.calloc(C.size_t(b.out_len), 1))
	return b, nil
}

func (p *hsmPart) address() string { return "" }

func (p *hsmPart) close() error { return p.ctx.Finalize() }

// work times the thread that the loop runs on, and nothing else.
func (p *hsmPart) work(o order) (partAnswer, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if o.Batch < 0 || o.Batch >= len(p.batches) {
		return partAnswer{}, errors.New("no such batch")
	}
	b := p.batches[o.Batch]
	if o.Rewrap {
		return timed(o.For, func() C.ulong_t { return C.rewrap(b, cBool(o.Proved)) })
	}
	if o.Cold && p.warm[o.Batch] {
		if err := rvError(C.destroy(b)); err != nil {
			return partAnswer{}, err
		}
	}
	if !o.Cold && !p.warm[o.Batch] {
		if err := rvError(C.unwrap(b)); err != nil {
			return partAnswer{}, err
		}
	}
	p.warm[o.Batch] = !o.Cold
	return timed(o.For, func() C.ulong_t { return C.once(b, cBool(o.Cold)) })
}

// timed repeats f on this thread until the time is over.
func timed(d time.Duration, f func() C.ulong_t) (partAnswer, error) {
	a := partAnswer{Took: make([]time.Duration, 0, 1<<14)}
	cpu := C.thread_cpu()
	began := time.Now()
	for at := began; at.Sub(began) < d; {
		if err := rvError(f()); err != nil {
			return a, err
		}
		now := time.Now()
		a.Took = append(a.Took, now.Sub(at))
		at = now
	}
	a.Wall = time.Since(began)
	a.CPU = time.Duration(C.thread_cpu() - cpu)
	return a, nil
}

func cBool(b bool) C.int {
	if b {
		return 1
	}
	return 0
}

func rvError(rv C.ulong_t) error {
	if rv == 0 {
		return nil
	}
	return pkcs11.Error(rv)
}

func findSlot(ctx *pkcs11.Ctx, label string) (uint, error) {
	slots, err := ctx.GetSlotList(true)
	if err != nil {
		return 0, err
	}
	for _, s := range slots {
		if info, err := ctx.GetTokenInfo(s); err == nil && info.Label == label {
			return s, nil
		}
	}
	return 0, fmt.Errorf("no token %s", label)
}

func findKey(ctx *pkcs11.Ctx, session pkcs11.SessionHandle, label string) (pkcs11.ObjectHandle, error) {
	err := ctx.FindObjectsInit(session, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), pkcs11.NewAttribute(pkcs11.CKA_LABEL, label)})
	if err != nil {
		return 0, err
	}
	found, _, err := ctx.FindObjects(session, 2)
	if err := errors.Join(err, ctx.FindObjectsFinal(session)); err != nil {
		return 0, err
	}
	if len(found) != 1 {
		return 0, fmt.Errorf("%d keys %s", len(found), label)
	}
	return found[0], nil
}

// dataKeyTemplate is what the KEK demands of a data key (docs/KEYS.md).
func dataKeyTemplate() []*pkcs11.Attribute {
	a := pkcs11.NewAttribute
	return []*pkcs11.Attribute{
		a(pkcs11.CKA_PRIVATE, false), a(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), a(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
		a(pkcs11.CKA_TOKEN, false), a(pkcs11.CKA_SENSITIVE, true), a(pkcs11.CKA_EXTRACTABLE, false),
		a(pkcs11.CKA_ENCRYPT, false), a(pkcs11.CKA_DECRYPT, true), a(pkcs11.CKA_WRAP, false), a(pkcs11.CKA_UNWRAP, false),
		a(pkcs11.CKA_SIGN, false), a(pkcs11.CKA_VERIFY, false), a(pkcs11.CKA_DERIVE, false),
		a(pkcs11.CKA_ALLOWED_MECHANISMS, binary.NativeEndian.AppendUint64(nil, pkcs11.CKM_AES_GCM)),
		a(pkcs11.CKA_COPYABLE, false), a(pkcs11.CKA_MODIFIABLE, false),
	}
}

// passingTemplate is what the KEK of role rotate demands of one that only
// passes through.
func passingTemplate() []*pkcs11.Attribute {
	a := pkcs11.NewAttribute
	return []*pkcs11.Attribute{
		a(pkcs11.CKA_PRIVATE, false), a(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), a(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
		a(pkcs11.CKA_TOKEN, false), a(pkcs11.CKA_SENSITIVE, true), a(pkcs11.CKA_EXTRACTABLE, true), a(pkcs11.CKA_WRAP_WITH_TRUSTED, true),
		a(pkcs11.CKA_ENCRYPT, false), a(pkcs11.CKA_DECRYPT, false), a(pkcs11.CKA_WRAP, false), a(pkcs11.CKA_UNWRAP, false),
		a(pkcs11.CKA_SIGN, false), a(pkcs11.CKA_VERIFY, false), a(pkcs11.CKA_DERIVE, false),
		a(pkcs11.CKA_COPYABLE, false), a(pkcs11.CKA_MODIFIABLE, false),
	}
}

func cTemplate(as []*pkcs11.Attribute) *C.attribute_t {
	list := (*C.attribute_t)(C.calloc(C.size_t(len(as)), C.sizeof_attribute_t))
	for i, a := range as {
		C.set_attribute(list, C.int(i), C.ulong_t(a.Type), C.CBytes(a.Value), C.ulong_t(len(a.Value)))
	}
	return list
}
