package custodian

import (
	"context"
	"time"

	"kluis/cryptoserver/control"
	"kluis/cryptoserver/envelope"
)

// Cryptoservers is the pool, all of it. Errors wrap ErrFork or ErrUnavailable
// where one applies. All calls may be repeated without harm.
type Cryptoservers interface {
	// SignControl has a head signed: of the feed as it is, or with one more
	// entry. ErrFork: the server knows the feed to be longer, or another.
	SignControl(ctx context.Context, head control.Head, entry []byte) (signed []byte, err error)
	// Addresses are those of all cryptoservers.
	Addresses() []string
	// PutControl tells one server the feed and returns the sequence it knows
	// then: when that is less than the head's, entries in between are missing.
	PutControl(ctx context.Context, address string, first uint64, entries [][]byte, head []byte) (sequence uint64, err error)
	// Status asks every server, in the order of Addresses.
	Status(ctx context.Context) []ServerStatus
	// Mint makes data keys under the active epoch, as asked, in order.
	Mint(ctx context.Context, specs []envelope.KeySpec) ([]envelope.KeyRecord, error)
	// Rewrap wraps keys under the active epoch, which it returns; in order.
	Rewrap(ctx context.Context, keys []envelope.KeyRecord) (epoch uint32, out []RewrapResult, err error)
	// Reseal seals blocks of one data key under another; in order.
	Reseal(ctx context.Context, from, to envelope.KeyRecord, blocks []envelope.SealedBlock) ([]ResealResult, error)
}

// RewrapResult is one key of Rewrap.
type RewrapResult struct {
	Record envelope.KeyRecord
	Err    error // ErrDamaged, ErrErased; then there is no record
}

// ResealResult is one block of Reseal.
type ResealResult struct {
	Ciphertext []byte
	Err        error // ErrDamaged, ErrErased; then there is no ciphertext
}

// ServerStatus is what one cryptoserver says of itself, or why it could not be
// asked.
type ServerStatus struct {
	Address     string
	Err         error // then the rest is empty
	ServerID    string
	Version     string
	Roles       []string
	Healthy     bool
	Sequence    uint64    // of the last control entry it knows
	HeadAt      time.Time // of the newest head it knows; zero: none
	ActiveEpoch uint32    // as far as it knows; 0: none
	Tokens      []TokenStatus
}

// TokenStatus describes an HSM token of a server.
type TokenStatus struct {
	Role    string
	Label   string
	State   string // up, suspect, down, probing
	Handles uint64 // unwrapped data keys that live on it
	Keys    []KeyStatus
}

// KeyStatus describes a key of a token.
type KeyStatus struct {
	Label      string
	Kind       string    // kek, mac, signing
	Epoch      uint32    // of a KEK, else 0
	MadeOn     time.Time // day, UTC; zero when the token does not say
	Attributes []string
	Uses       uint64 // since the server started
}

// Ack says whether a server has acknowledged the feed: then it has forgotten
// every unwrapped key from before, and uses nothing that was erased.
type Ack struct {
	Address string
	Err     error // nil: acknowledged
}
