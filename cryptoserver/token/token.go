// Package token says what the cryptoserver needs of an HSM token, role by
// role. internal/hsm implements it over PKCS#11; the cryptoserver and its
// tests see nothing else.
//
// Duties of every implementer: safe for concurrent use; a call returns by its
// context's deadline; key material never leaves the token; buffers are
// written only within the call; errors wrap exactly one of the errors below.
package token

import (
	"context"
	"crypto"
	"errors"
	"fmt"
)

var (
	// ErrBadData: this input does not open (wrong tag, wrong AAD, corrupt
	// wrapped key) although the token is well. Never a reason to fail over.
	ErrBadData = errors.New("does not open")
	// ErrUnavailable: the token cannot serve now. A reason to fail over.
	ErrUnavailable = errors.New("token unavailable")
	// ErrBusy is an ErrUnavailable: the token is well, and as many callers wait
	// for it as may. Another server may have room; this one says so at once, or
	// callers would miss their deadlines in the queue.
	ErrBusy = fmt.Errorf("%w: too many calls are waiting", ErrUnavailable)
	// ErrUnknownEpoch: the token has no KEK of this epoch.
	ErrUnknownEpoch = errors.New("unknown KEK epoch")
)

// WrappedKey is a data key as stored: AES-256 under AES key wrap (RFC 3394).
type WrappedKey struct {
	ID      [16]byte
	Epoch   uint32
	Wrapped []byte
}

// Item is one AES-256-GCM operation of a batch (96-bit IV, 128-bit tag).
type Item struct {
	Key int    // index into the batch's keys
	IV  []byte // 12 bytes; for Seal the token fills it from its own RNG
	AAD []byte
	In  []byte // open: ciphertext and tag; seal: plaintext
	Out []byte // open: capacity at least len(In)-16; seal: len(In)+16; resized by the call
	Err error  // ErrBadData when this item failed and the others go on
}

// Opener decrypts (role open).
type Opener interface {
	// Open works through the batch. It returns an error only when the batch
	// as a whole could not be served; an item that does not open has its Err
	// set. Keys are unwrapped inside the token, once per batch at most, and
	// their handles may be cached, bounded in number and time, by the digest
	// of the wrapped bytes.
	Open(ctx context.Context, keys []WrappedKey, items []Item) error
	Health
}

// Sealer encrypts and authenticates (role seal).
type Sealer interface {
	Seal(ctx context.Context, keys []WrappedKey, items []Item) error
	// ContentMAC and RecordMAC are HMAC-SHA-256 under keys of the token.
	ContentMAC(ctx context.Context, messages [][]byte) ([][32]byte, error)
	RecordMAC(ctx context.Context, messages [][]byte) ([][32]byte, error)
	// Signer is the ES256 seal key for legal files and supplier records.
	Signer() crypto.Signer
	Health
}

// Minter makes data keys (role mint).
type Minter interface {
	// Mint generates n AES-256 keys in the token and returns them wrapped
	// under the active KEK, whose epoch it names.
	Mint(ctx context.Context, n int) (wrapped [][]byte, epoch uint32, err error)
	RecordMAC(ctx context.Context, messages [][]byte) ([][32]byte, error)
	// Random reads the token's RNG.
	Random(ctx context.Context, p []byte) error
	Health
}

// TokenSigner signs access tokens (role sign).
type TokenSigner interface {
	// Signer is the ES256 access-token key.
	Signer() crypto.Signer
	Health
}

// Health is asked by Status and the gRPC health service.
type Health interface {
	// Check does one cheap real operation on the token.
	Check(ctx context.Context) error
	// Epochs lists the KEK epochs the token holds; empty for role sign.
	Epochs() []uint32
}
