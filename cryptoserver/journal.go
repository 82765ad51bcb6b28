package cryptoserver

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc/codes"

	"kluis/cryptoserver/checkpoint"
	"kluis/cryptoserver/control"
	"kluis/cryptoserver/cryptopb"
	"kluis/cryptoserver/envelope"
	"kluis/cryptoserver/journal"
)

// Journal keeps what this server opened and sealed (*journal.Journal).
// Implementers are safe for concurrent use.
type Journal interface {
	BootID() [16]byte
	// Append adds n entries, all or none. An error says that they will never be
	// read, so that what they tell of must not leave.
	Append(n int, encode func(i int, sequence uint64, previous [32]byte) []byte) ([][]byte, error)
	Read(boot [16]byte, after uint64, limit int) ([][]byte, error)
	Boots() []journal.Boot
	Use() journal.Use
	Err() error     // nil while entries can be written
	Recover() error // tries again after a failure, and returns Err
}

// recorder makes the entries of the journal: receipts and seal events on one hash
// chain. An entry is written before the answer it belongs to leaves, so one that
// is missing from the access log shows.
type recorder struct {
	serverID string
	journal  Journal
	receipts atomic.Uint64
	failed   func(error) // is told of an entry that could not be written

	mu   sync.Mutex
	head control.Head // of the control feed, recorded last; At is not used
}

// opened records what a call opened, a receipt for each metering point, and
// returns the receipts.
func (r *recorder) opened(receipts []envelope.Receipt) ([][]byte, error) {
	if len(receipts) == 0 {
		return nil, nil
	}
	out, err := r.journal.Append(len(receipts), func(i int, sequence uint64, previous [32]byte) []byte {
		c := &receipts[i]
		c.ServerID, c.BootID, c.Sequence, c.Previous = r.serverID, r.journal.BootID(), sequence, previous
		return c.Encode()
	})
	if err != nil {
		return nil, r.notRecorded(err)
	}
	r.receipts.Add(uint64(len(receipts)))
	return out, nil
}

// sealed records what a call sealed.
func (r *recorder) sealed(e envelope.SealEvent) error {
	_, err := r.journal.Append(1, func(_ int, sequence uint64, previous [32]byte) []byte {
		e.Link = envelope.Link{ServerID: r.serverID, BootID: r.journal.BootID(), Sequence: sequence, Previous: previous}
		return e.Encode()
	})
	if err != nil {
		return r.notRecorded(err)
	}
	return nil
}

// signedHead records a head of the control feed. A heartbeat says again what was
// recorded, and is not.
func (r *recorder) signedHead(head control.Head, client string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.head.Sequence == head.Sequence && r.head.Hash == head.Hash && !r.head.At.IsZero() {
		return nil
	}
	err := r.sealed(envelope.SealEvent{At: head.At, Client: client, Kind: envelope.ControlHead, Version: head.Sequence, Digest: head.Hash})
	if err == nil {
		r.head = head
	}
	return err
}

func (r *recorder) notRecorded(err error) error {
	r.failed(err)
	return notRecorded(err)
}

func notRecorded(err error) error {
	return refuse(codes.Unavailable, cryptopb.ReasonNotRecorded,
		"this server cannot write its journal, so it opens and seals nothing: see to the disk of its journal_dir", err)
}

// recordable refuses a call early that could not be recorded.
func (s *Server) recordable() error {
	if err := s.recorder.journal.Err(); err != nil {
		return s.recorder.notRecorded(err)
	}
	return nil
}

// maxJournal is how many bytes of entries one answer has, and one entry more.
const maxJournal = 1 << 20

// ReadJournal gives the auditor what this server opened and sealed. It does not
// pass the gateway, so that a gateway cannot keep an opening to itself.
func (s *Server) ReadJournal(ctx context.Context, req *cryptopb.ReadJournalRequest) (*cryptopb.ReadJournalResponse, error) {
	if s.recorder.journal == nil {
		return nil, refuse(codes.FailedPrecondition, cryptopb.ReasonRoleNotServed, "this server opens and seals nothing, so it has no journal", nil)
	}
	var entries [][]byte
	switch len(req.BootId) {
	case 0:
	case 16:
		var err error
		entries, err = s.recorder.journal.Read([16]byte(req.BootId), req.After, maxJournal)
		switch {
		case errors.Is(err, journal.ErrUnknown):
			return nil, refuse(codes.FailedPrecondition, cryptopb.ReasonMalformed, "this server has no journal of that boot, or no such entry in it", nil)
		case err != nil:
			return nil, refuse(codes.Internal, cryptopb.ReasonInternal, "the journal cannot be read", err)
		}
	default:
		return nil, malformed("boot id of 16 bytes, or none")
	}
	callOf(ctx).units = len(entries)
	resp := &cryptopb.ReadJournalResponse{Entries: entries}
	// After the entries: none of them is beyond what the list says.
	for _, b := range s.recorder.journal.Boots() {
		resp.Boots = append(resp.Boots, &cryptopb.JournalBoot{BootId: b.ID[:], Last: b.Last, Ended: b.Ended, Torn: b.Torn})
	}
	return resp, nil
}

// checkpoints are the trees that this server signed since it started.
type checkpoints struct {
	mu     sync.Mutex
	signed map[string]checkpoint.Checkpoint // by origin
}

// maxOrigins bounds the logs whose trees a server signs: an installation has one.
const maxOrigins = 16

// SignCheckpoint signs the head of the audit log's tree, with this server's time.
// It cannot see whether a tree goes on from the one before, but that one is not
// made smaller, or another, it does: whoever has two notes of this server can
// compare the rest.
func (s *Server) SignCheckpoint(ctx context.Context, req *cryptopb.SignCheckpointRequest) (*cryptopb.SignCheckpointResponse, error) {
	if s.tokens.Seal == nil {
		return nil, notServed(RoleSeal)
	}
	callOf(ctx).units = 1
	c := checkpoint.Checkpoint{Origin: req.Origin, Size: req.Size, At: s.now()}
	if len(req.Root) != len(c.Root) {
		return nil, malformed("root of 32 bytes")
	}
	copy(c.Root[:], req.Root)
	if _, err := c.Text(); err != nil {
		return nil, malformed("an origin of 1 to 64 printable characters without spaces and plus signs, and a size up to 2^62")
	}
	// What is signed is noted before: a signature that was made may be known to
	// somebody, even when this call fails.
	if err := s.checkpoints.note(c); err != nil {
		if errors.Is(err, errFork) {
			s.log.Error("the audit log contradicts the tree signed before: somebody cut or rewrote it, or put back an older database", "error", err.Error())
			return nil, refuse(codes.FailedPrecondition, cryptopb.ReasonCheckpointFork, err.Error(), nil)
		}
		return nil, malformed("%v", err)
	}
	key, sign := s.sealer.checkpointKey()
	note, err := checkpoint.Sign(c, key, sign)
	if err != nil {
		return nil, s.tokenError(ctx, RoleSeal, err)
	}
	return &cryptopb.SignCheckpointResponse{Note: note}, nil
}

var errFork = errors.New("the audit log is another one")

func (k *checkpoints) note(c checkpoint.Checkpoint) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	before, known := k.signed[c.Origin]
	switch {
	case !known && len(k.signed) >= maxOrigins:
		return fmt.Errorf("trees of %d logs were signed already: an installation has one", maxOrigins)
	case known && c.Size < before.Size:
		return fmt.Errorf("%w: a tree of %d leaves was signed, and this has %d", errFork, before.Size, c.Size)
	case known && c.Size == before.Size && c.Root != before.Root:
		return fmt.Errorf("%w: another root of %d leaves was signed", errFork, c.Size)
	}
	if k.signed == nil {
		k.signed = map[string]checkpoint.Checkpoint{}
	}
	k.signed[c.Origin] = c
	return nil
}
