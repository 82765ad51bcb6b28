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
	classSession              // the worker's session is gone: replace it, repeat once
	classHolder               // the holder session is gone: connect anew, repeat once
	classDown                 // the token is down
	classLatched              // down until an operator acts
)

// aeadDecryptFailed is CKR_AEAD_DECRYPT_FAILED of PKCS#11 v3.0: a wrong tag.
const aeadDecryptFailed = 0x42

// errCanary: the known vector did not come out.
var errCanary = errors.New("canary failed: the token does not compute what it should")

var (
	// errPIN: the PIN was presented and not accepted, or must not be presented.
	errPIN = errors.New("the PIN must not be tried again")
	// errHolder: the holder session went away with a call that does not return.
	errHolder = errors.New("the holder session is lost")
	// errAbandoned: the call was given up while it was in the module.
	errAbandoned = errors.New("abandoned")
)

// holderError is an answer about the holder session.
type holderError struct{ error }

func (e *holderError) Unwrap() error { return e.error }

// errKeys: the token is well but must not be served from.
var errKeys = errors.New("token refused")

func classify(err error) class {
	var rv pkcs11.Error
	switch {
	case err == nil, errors.Is(err, token.ErrBadData), errors.Is(err, token.ErrUnknownEpoch),
		errors.Is(err, token.ErrUnavailable), // the caller left
		errors.Is(err, errAbandoned):
		return classNone
	case errors.Is(err, errPIN), errors.Is(err, ErrWeakKEK):
		return classLatched // trying again would lock the token, or change nothing
	case errors.Is(err, errHolder):
		return classHolder
	case errors.Is(err, errCanary), !errors.As(err, &rv):
		return classDown
	}
	c := classifyRV(uint(rv))
	var h *holderError
	if c == classSession && errors.As(err, &h) {
		return classHolder
	}
	return c
}

func classifyRV(rv uint) class {
	switch rv {
	case pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_FUNCTION_FAILED, pkcs11.CKR_DATA_INVALID, pkcs11.CKR_DATA_LEN_RANGE,
		pkcs11.CKR_ENCRYPTED_DATA_INVALID, pkcs11.CKR_ENCRYPTED_DATA_LEN_RANGE, aeadDecryptFailed, pkcs11.CKR_SIGNATURE_INVALID,
		pkcs11.CKR_WRAPPED_KEY_INVALID, pkcs11.CKR_WRAPPED_KEY_LEN_RANGE:
		return classData
	case pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_SESSION_COUNT,
		pkcs11.CKR_OPERATION_ACTIVE, pkcs11.CKR_OPERATION_NOT_INITIALIZED, pkcs11.CKR_BUFFER_TOO_SMALL:
		return classSession
	case pkcs11.CKR_KEY_HANDLE_INVALID, pkcs11.CKR_OBJECT_HANDLE_INVALID, pkcs11.CKR_UNWRAPPING_KEY_HANDLE_INVALID,
		pkcs11.CKR_WRAPPING_KEY_HANDLE_INVALID:
		return classHolder
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
