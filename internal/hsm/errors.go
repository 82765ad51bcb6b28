package hsm

import (
	"errors"
	"fmt"

	"kluis/cryptoserver/token"

	"github.com/miekg/pkcs11"
)

// class is what an answer of the module means for the token.
type class int

const (
	classNone    class = iota // no error, or one that is not the token's
	classData                 // the input or the token: the canary decides
	classSession              // the session is gone: replace it, repeat once
	classDown                 // the token is down
	classPIN                  // down until an operator acts
)

// aeadDecryptFailed is CKR_AEAD_DECRYPT_FAILED of PKCS#11 v3.0: a wrong tag.
const aeadDecryptFailed = 0x42

// errCanary: the known vector did not come out.
var errCanary = errors.New("canary failed: the token does not compute what it should")

// errKeys: the token is well but must not be served from.
var errKeys = errors.New("token refused")

func classify(err error) class {
	var rv pkcs11.Error
	switch {
	case err == nil, errors.Is(err, token.ErrBadData), errors.Is(err, token.ErrUnknownEpoch),
		errors.Is(err, token.ErrUnavailable): // the caller left
		return classNone
	case !errors.As(err, &rv):
		return classDown
	}
	switch uint(rv) {
	case pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_FUNCTION_FAILED, pkcs11.CKR_DATA_INVALID, pkcs11.CKR_DATA_LEN_RANGE,
		pkcs11.CKR_ENCRYPTED_DATA_INVALID, pkcs11.CKR_ENCRYPTED_DATA_LEN_RANGE, aeadDecryptFailed, pkcs11.CKR_SIGNATURE_INVALID,
		pkcs11.CKR_WRAPPED_KEY_INVALID, pkcs11.CKR_WRAPPED_KEY_LEN_RANGE:
		return classData
	case pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_SESSION_COUNT,
		pkcs11.CKR_OPERATION_ACTIVE, pkcs11.CKR_OPERATION_NOT_INITIALIZED, pkcs11.CKR_BUFFER_TOO_SMALL,
		pkcs11.CKR_KEY_HANDLE_INVALID, pkcs11.CKR_OBJECT_HANDLE_INVALID, pkcs11.CKR_UNWRAPPING_KEY_HANDLE_INVALID,
		pkcs11.CKR_WRAPPING_KEY_HANDLE_INVALID:
		return classSession
	case pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_INVALID, pkcs11.CKR_PIN_LEN_RANGE, pkcs11.CKR_PIN_EXPIRED,
		pkcs11.CKR_PIN_LOCKED, pkcs11.CKR_USER_PIN_NOT_INITIALIZED:
		return classPIN
	}
	return classDown
}

// unavailable is what callers see of everything that is not their data. The
// PKCS#11 code stays readable in it; no key, no data, no PIN ever is.
func unavailable(label string, err error) error {
	if errors.Is(err, token.ErrUnavailable) {
		return err
	}
	return fmt.Errorf("token %s: %w: %w", label, token.ErrUnavailable, err)
}
