package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"kluis/cryptoserver/control"
	"kluis/cryptoserver/cryptopb"
	"kluis/cryptoserver/envelope"
)

// SignControl has a head of the control feed signed: that of the feed as it is,
// a heartbeat, or with one more entry, in its canonical form. The time in it is
// the signing server's. ErrControlFork: the server knows the feed to be longer,
// or another.
func (c *Client) SignControl(ctx context.Context, head control.Head, entry []byte) ([]byte, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	resp, err := c.sealKey.SignControl(ctx, &cryptopb.SignControlRequest{Sequence: head.Sequence, Hash: head.Hash[:], Entry: entry})
	if err != nil {
		return nil, fromGRPC(err)
	}
	return resp.Head, nil
}

// Addresses are those of the configuration, in its order.
func (c *Client) Addresses() []string {
	out := make([]string, len(c.servers))
	for i, s := range c.servers {
		out[i] = s.address
	}
	return out
}

// PutControl brings the control feed of one server up to date: entries are
// canonical ones, the first of which has the sequence first, and head is the
// signed head of the last of them, or of a later time with no entry more. It
// returns the sequence the server now knows: when that is less than the head's,
// entries in between are missing, and those after it are to be sent. Without an
// error every entry up to it has taken effect: of what was erased no unwrapped
// key is left. ErrControlFork: the server knows another feed, or a longer one.
func (c *Client) PutControl(ctx context.Context, address string, first uint64, entries [][]byte, head []byte) (uint64, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	s, err := c.at(address)
	if err != nil {
		return 0, err
	}
	resp, err := s.api.PutControl(ctx, &cryptopb.PutControlRequest{First: first, Entries: entries, Head: head})
	if err != nil {
		return 0, fromGRPC(err)
	}
	return resp.Sequence, nil
}

// at is the server with an address.
func (c *Client) at(address string) (*server, error) {
	for i := range c.servers {
		if c.servers[i].address == address {
			return &c.servers[i], nil
		}
	}
	return nil, fmt.Errorf("cryptoserver client: %s is not among the configured addresses", address)
}

// RewrapResult is one key of Rewrap.
type RewrapResult struct {
	Record envelope.KeyRecord
	Err    error // ErrDamaged, ErrErased; then there is no record
}

// Rewrap wraps data keys, at most 4000, under the active KEK epoch, which it
// returns. The results are as given, in order.
func (c *Client) Rewrap(ctx context.Context, keys []envelope.KeyRecord) (uint32, []RewrapResult, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	in := &cryptopb.RewrapRequest{Keys: make([]*cryptopb.DataKey, len(keys))}
	for i := range keys {
		in.Keys[i] = keyToWire(&keys[i])
	}
	resp, err := c.rotate.Rewrap(ctx, in)
	if err != nil {
		return 0, nil, fromGRPC(err)
	}
	if len(resp.Keys) != len(keys) || resp.KekEpoch == 0 {
		return 0, nil, internal("the server answered with another number of keys, or for no KEK epoch")
	}
	out := make([]RewrapResult, len(keys))
	for i, k := range resp.Keys {
		if k.GetFault() != cryptopb.Fault_FAULT_UNSPECIFIED {
			out[i].Err = faultError(k.GetFault())
			continue
		}
		if len(k.GetMac()) != 32 || len(k.GetWrapped()) != envelope.WrappedKeySize {
			return 0, nil, internal("the server answered with something that is no wrapped key")
		}
		out[i].Record = keys[i]
		out[i].Record.Epoch, out[i].Record.Wrapped, out[i].Record.MAC = resp.KekEpoch, k.Wrapped, [32]byte(k.Mac)
	}
	return resp.KekEpoch, out, nil
}

// ResealResult is one block of Reseal.
type ResealResult struct {
	Ciphertext []byte
	Err        error // ErrDamaged; then there is no ciphertext
}

// Reseal seals blocks that are sealed under one data key under another of the
// same metering point, class and month. It asks the servers in turn until one
// has the roles open and seal and can serve. The results are as given, in order.
func (c *Client) Reseal(ctx context.Context, from, to envelope.KeyRecord, blocks []envelope.SealedBlock) ([]ResealResult, error) {
	in := &cryptopb.ResealRequest{
		Ean: uint64(from.EAN.Int64()), From: keyToWire(&from), To: keyToWire(&to),
		Blocks: make([]*cryptopb.SealedBlock, len(blocks)),
	}
	for i := range blocks {
		in.Blocks[i] = new(cryptopb.SealedBlock)
		sealedToWire(&blocks[i], in.Blocks[i])
	}
	var resp *cryptopb.ResealResponse
	err := whileLimited(ctx, func() error {
		var err error
		resp, err = c.reseal(ctx, in)
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(resp.Blocks) != len(blocks) {
		return nil, internal("the server answered with another number of blocks")
	}
	out := make([]ResealResult, len(blocks))
	for i, b := range resp.Blocks {
		if b.GetFault() != cryptopb.Fault_FAULT_UNSPECIFIED {
			out[i].Err = faultError(b.GetFault())
			continue
		}
		if len(b.GetCiphertext()) != len(blocks[i].Ciphertext) {
			return nil, internal("the server answered with another block than was sent")
		}
		out[i].Ciphertext = b.Ciphertext
	}
	return out, nil
}

func (c *Client) reseal(ctx context.Context, in *cryptopb.ResealRequest) (*cryptopb.ResealResponse, error) {
	var last error
	turn := int(c.turn.Add(1))
	for i := range c.servers {
		s := c.servers[(turn+i)%len(c.servers)]
		ctx, cancel := c.bound(ctx)
		resp, err := s.api.Reseal(ctx, in)
		cancel()
		if err == nil {
			return resp, nil
		}
		err = fromGRPC(err)
		var e *Error
		// The same as a pool does, and without one of the roles as well.
		elsewhere := errors.Is(err, ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) ||
			errors.As(err, &e) && (e.Reason == cryptopb.ReasonRoleNotServed || e.Reason == cryptopb.ReasonSealRate)
		if !elsewhere {
			return nil, err
		}
		// Of several failures the one that will pass is the news, then one that
		// may.
		if last == nil || errors.Is(err, ErrSealRate) || !errors.Is(err, ErrRefused) && !errors.Is(last, ErrSealRate) {
			last = err
		}
	}
	return nil, last
}

// faultError is never nil: a fault that this client does not know is damage.
func faultError(f cryptopb.Fault) error {
	if f == cryptopb.Fault_FAULT_ERASED {
		return ErrErased
	}
	return ErrDamaged
}

// limitedFor bounds how long a call goes on while the servers say that this
// client seals faster than it may.
const limitedFor = 5 * time.Minute

// whileLimited repeats a call that met the servers' sealing rate when they say
// there is room again: an import goes slower, and does not fail.
func whileLimited(ctx context.Context, call func() error) error {
	end := time.Now().Add(limitedFor)
	for {
		err := call()
		var e *Error
		if !errors.As(err, &e) || e.Reason != cryptopb.ReasonSealRate || time.Now().Add(e.RetryAfter).After(end) {
			return err
		}
		wait := time.NewTimer(max(e.RetryAfter, 10*time.Millisecond))
		select {
		case <-ctx.Done():
			wait.Stop()
			return err
		case <-wait.C:
		}
	}
}

// TokenStatus describes an HSM token of a server.
type TokenStatus struct {
	Role    string
	Label   string
	State   string // up, suspect, down, probing; unknown when it did not say
	Handles uint64 // unwrapped data keys that live on it
	Keys    []KeyStatus
}

// KeyStatus describes a key of a token.
type KeyStatus struct {
	Label      string
	Kind       string    // kek, mac, signing
	Epoch      uint32    // of a KEK, else 0
	MadeOn     time.Time // day, UTC; zero when the token does not say
	Attributes []string  // what it may, and what it never may
	Uses       uint64    // operations with it since the server started
}

func tokensFromWire(in []*cryptopb.TokenStatus) []TokenStatus {
	out := make([]TokenStatus, len(in))
	for i, t := range in {
		out[i] = TokenStatus{Role: t.GetRole(), Label: t.GetLabel(), State: t.GetState(), Handles: t.GetHandles(), Keys: make([]KeyStatus, len(t.GetKeys()))}
		for j, k := range t.GetKeys() {
			o := &out[i].Keys[j]
			o.Label, o.Kind, o.Epoch, o.Attributes, o.Uses = k.GetLabel(), k.GetKind(), k.GetKekEpoch(), k.GetAttributes(), k.GetUses()
			o.MadeOn, _ = time.Parse(time.DateOnly, k.GetMadeOn()) // zero when the token does not say
		}
	}
	return out
}
