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
	"time"
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

// MaxKeys is how many data keys a batch of Open or Seal may have: each is an
// object on the token while the batch runs.
const MaxKeys = 16384

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
	Forgetter
	Health
}

// Forgetter holds unwrapped data keys.
type Forgetter interface {
	// Forget destroys every unwrapped data key that no running batch uses, and
	// those that one uses when it ends. When it returns nil no later batch
	// uses a key unwrapped before.
	Forget(ctx context.Context) error
}

// Sealer encrypts and authenticates (role seal).
type Sealer interface {
	Seal(ctx context.Context, keys []WrappedKey, items []Item) error
	// ContentMAC, RecordMAC and IndexMAC are HMAC-SHA-256 under keys of the token.
	ContentMAC(ctx context.Context, messages [][]byte) ([][32]byte, error)
	IndexMAC(ctx context.Context, messages [][]byte) ([][32]byte, error)
	RecordMAC(ctx context.Context, messages [][]byte) ([][32]byte, error)
	// Signer is the ES256 seal key for legal files and supplier records.
	Signer() crypto.Signer
	Forgetter
	Health
}

// Minter makes data keys (role mint).
type Minter interface {
	// Mint generates n AES-256 keys in the token and returns them wrapped
	// under the KEK of an epoch; ErrUnknownEpoch when the token lacks it.
	Mint(ctx context.Context, epoch uint32, n int) (wrapped [][]byte, err error)
	RecordMAC(ctx context.Context, messages [][]byte) ([][32]byte, error)
	// Random reads the token's RNG.
	Random(ctx context.Context, p []byte) error
	Health
}

// Rotator moves data keys from one KEK to another (role rotate). They never
// leave the token but wrapped.
type Rotator interface {
	// Rewrap returns each key wrapped under the KEK of epoch to, as asked, in
	// order. It returns an error only when the batch as a whole could not be
	// served: ErrUnknownEpoch when the token lacks to. A key that does not
	// unwrap has its Err set: ErrBadData, or ErrUnknownEpoch.
	Rewrap(ctx context.Context, keys []WrappedKey, to uint32) ([]Rewrapped, error)
	RecordMAC(ctx context.Context, messages [][]byte) ([][32]byte, error)
	Health
}

// Rewrapped is a data key under another KEK.
type Rewrapped struct {
	Wrapped []byte
	Err     error
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
	// Epochs lists the KEK epochs that every token of the role holds, ascending;
	// empty for role sign.
	Epochs() []uint32
	// Report describes the tokens of the role and the keys on them, as found
	// when they were last opened.
	Report() []Report
}

// Report describes one token.
type Report struct {
	Label   string
	State   string // up, suspect, down, probing
	Handles int64  // unwrapped data keys that live on it now
	Keys    []Key
}

// Key describes a key of a token.
type Key struct {
	Label      string
	Kind       string    // kek, mac, signing
	Epoch      uint32    // of a KEK, else 0
	MadeOn     time.Time // day, UTC; zero when the token does not say
	Attributes []string  // what it may, and what it never may
	Uses       uint64    // operations with it since the process started
}
