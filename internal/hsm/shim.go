package hsm

/*
#cgo linux LDFLAGS: -ldl
#include <stdlib.h>
#include <string.h>
#include "shim.h"

static void kluis_set_attribute(ck_attribute *a, int i, ck_ulong type, void *value, ck_ulong len)
{
	a[i].type = type;
	a[i].value = value;
	a[i].len = len;
}
*/
import "C"

import (
	"fmt"
	"unsafe"

	"github.com/miekg/pkcs11"
)

// Sizes the shim insists on; checked in Go before any crossing.
const (
	ivSize        = 12
	tagSize       = 16
	macSize       = 32
	signatureSize = 64 // ECDSA P-256
	wrappedSize   = 40
)

type (
	gcmItem    = C.kluis_gcm_item
	unwrapItem = C.kluis_unwrap_item
	macItem    = C.kluis_mac_item
	rewrapItem = C.kluis_rewrap_item
)

// CK_ULONG has 64 bits wherever this builds; attributes are encoded so.
var _ [C.sizeof_ck_ulong - 8]struct{}

const (
	notRun   = C.kluis_not_run
	mismatch = C.kluis_mismatch
)

// shim is the module's function list, as the data path calls it.
type shim struct {
	list    unsafe.Pointer
	givenUp *int64 // negative: the call in progress was given up; nil: it cannot be
}

// watched is the shim for calls that may be given up.
func (s shim) watched(givenUp *int64) shim { return shim{s.list, givenUp} }

func (s shim) word() *C.int64_t { return (*C.int64_t)(unsafe.Pointer(s.givenUp)) }

func loadShim(path string) (shim, error) {
	p := C.CString(path)
	defer C.free(unsafe.Pointer(p))
	list := C.kluis_load(p)
	if list == nil {
		return shim{}, fmt.Errorf("PKCS#11 module %s cannot be loaded: check the path, that it is built for this machine and that it has every function Kluis uses", path)
	}
	return shim{list: list}, nil
}

// template is an attribute list in C memory: attributes have pointers, which
// memory of Go must not hold across a call. It carries no key material.
type template struct {
	list *C.ck_attribute
	n    int
}

func newTemplate(attributes []*pkcs11.Attribute) template {
	t := template{n: len(attributes)}
	t.list = (*C.ck_attribute)(C.calloc(C.size_t(len(attributes)), C.sizeof_ck_attribute))
	if t.list == nil {
		panic("out of memory") // as C.malloc and C.CBytes do
	}
	for i, a := range attributes {
		C.kluis_set_attribute(t.list, C.int(i), C.ck_ulong(a.Type), C.CBytes(a.Value), C.ck_ulong(len(a.Value)))
	}
	return t
}

func (t template) free() {
	if t.list == nil {
		return
	}
	for _, a := range unsafe.Slice(t.list, t.n) {
		C.free(a.value)
	}
	C.free(unsafe.Pointer(t.list))
}

// bytes is the list as the value of an attribute that nests it
// (CKA_UNWRAP_TEMPLATE); valid until free.
func (t template) bytes() []byte {
	return C.GoBytes(unsafe.Pointer(t.list), C.int(t.n)*C.sizeof_ck_attribute)
}

func rvError(rv C.ck_ulong) error {
	if rv == 0 {
		return nil
	}
	return pkcs11.Error(rv)
}

func bytePointer(b []byte) *C.uchar { return (*C.uchar)(unsafe.SliceData(b)) }

// gcm works through items and returns how many it got through.
func (s shim) gcm(session pkcs11.SessionHandle, encrypt bool, items []gcmItem, in, out []byte) int {
	if len(items) == 0 {
		return 0
	}
	e := C.int(0)
	if encrypt {
		e = 1
	}
	return int(C.kluis_gcm(s.list, s.word(), C.ck_ulong(session), e, unsafe.SliceData(items), C.int(len(items)),
		bytePointer(in), C.uint64_t(len(in)), bytePointer(out), C.uint64_t(len(out))))
}

func (s shim) unwrap(session pkcs11.SessionHandle, items []unwrapItem, in []byte, t template) int {
	if len(items) == 0 {
		return 0
	}
	return int(C.kluis_unwrap(s.list, s.word(), C.ck_ulong(session), unsafe.SliceData(items), C.int(len(items)),
		bytePointer(in), C.uint64_t(len(in)), t.list, C.int(t.n)))
}

func (s shim) destroy(session pkcs11.SessionHandle, objects []uint64) error {
	if len(objects) == 0 {
		return nil
	}
	return rvError(C.kluis_destroy(s.list, s.word(), C.ck_ulong(session), (*C.uint64_t)(unsafe.SliceData(objects)), C.int(len(objects))))
}

// sign makes an HMAC or a signature of each bytes per item.
func (s shim) sign(session pkcs11.SessionHandle, mechanism uint, key pkcs11.ObjectHandle, items []macItem, in, out []byte, each int) error {
	if len(items) == 0 {
		return nil
	}
	return rvError(C.kluis_sign(s.list, s.word(), C.ck_ulong(session), C.ck_ulong(mechanism), C.ck_ulong(key), unsafe.SliceData(items), C.int(len(items)),
		bytePointer(in), C.uint64_t(len(in)), bytePointer(out), C.uint64_t(len(out)), C.uint32_t(each)))
}

// mint fills wrapped, whose length is a multiple of wrappedSize.
func (s shim) mint(session pkcs11.SessionHandle, kek pkcs11.ObjectHandle, t template, wrapped []byte) error {
	if len(wrapped) == 0 {
		return nil
	}
	return rvError(C.kluis_mint(s.list, s.word(), C.ck_ulong(session), C.ck_ulong(kek), t.list, C.int(t.n),
		bytePointer(wrapped), C.uint64_t(len(wrapped)), C.int(len(wrapped)/wrappedSize)))
}

// rewrap works through items and returns how many it got through; out has
// wrappedSize for each.
func (s shim) rewrap(session pkcs11.SessionHandle, to pkcs11.ObjectHandle, items []rewrapItem, in, out []byte, t template) int {
	if len(items) == 0 {
		return 0
	}
	return int(C.kluis_rewrap(s.list, s.word(), C.ck_ulong(session), C.ck_ulong(to), unsafe.SliceData(items), C.int(len(items)),
		bytePointer(in), C.uint64_t(len(in)), t.list, C.int(t.n), bytePointer(out), C.uint64_t(len(out))))
}

func (s shim) random(session pkcs11.SessionHandle, out []byte) error {
	if len(out) == 0 {
		return nil
	}
	return rvError(C.kluis_random(s.list, C.ck_ulong(session), bytePointer(out), C.uint64_t(len(out))))
}

// trim gives memory back to the system that C freed.
func trim() { C.kluis_trim() }

func cUint32(n int) C.uint32_t { return C.uint32_t(n) }

func cUint64[T ~uint | ~uint64](n T) C.uint64_t { return C.uint64_t(n) }
