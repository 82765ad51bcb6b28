package client

import (
	"context"

	"kluis/cryptoserver/cryptopb"
)

// JournalBoot is the journal that a server has of one of its boots.
type JournalBoot struct {
	BootID [16]byte
	Last   uint64 // sequence of the last entry; 0: there is none
	Ended  bool   // no entry will follow
	Torn   bool   // a crash may have lost entries after the last
}

// Journal is a piece of a server's journal.
type Journal struct {
	Boots   []JournalBoot // all that the server still has, oldest first
	Entries [][]byte      // canonical (envelope.ParseEntry), in order
}

// ReadJournal reads entries of a boot of one server, in order, from the one
// after the sequence after; a zero boot id only lists the boots. It returns some
// megabyte at most: an empty list of entries says that there are no more now.
//
// To ask for what comes after an entry tells the server that all entries up to
// it are stored for good: ask for no more than that is true of. When the server
// has removed entries since, the first one returned has a higher sequence. What
// follows on what is the caller's to check (envelope.Chain). ErrRefused: the
// server does not know the boot, or it has no entry after.
func (c *Client) ReadJournal(ctx context.Context, address string, bootID [16]byte, after uint64) (Journal, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	s, err := c.at(address)
	if err != nil {
		return Journal{}, err
	}
	req := &cryptopb.ReadJournalRequest{After: after}
	if bootID != [16]byte{} {
		req.BootId = bootID[:]
	}
	resp, err := s.api.ReadJournal(ctx, req)
	if err != nil {
		return Journal{}, fromGRPC(err)
	}
	out := Journal{Boots: make([]JournalBoot, len(resp.Boots)), Entries: resp.Entries}
	for i, b := range resp.Boots {
		if len(b.GetBootId()) != len(bootID) {
			return Journal{}, internal("the server's list of boots cannot be read")
		}
		out.Boots[i] = JournalBoot{BootID: [16]byte(b.BootId), Last: b.Last, Ended: b.Ended, Torn: b.Torn}
	}
	return out, nil
}

// SignCheckpoint has the head of the audit log's tree signed: a signed note
// (package checkpoint) with the signing server's time in it. ErrCheckpointFork:
// the server signed a larger tree since it started, or another of this size.
func (c *Client) SignCheckpoint(ctx context.Context, origin string, size uint64, root [32]byte) (string, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	resp, err := c.sealKey.SignCheckpoint(ctx, &cryptopb.SignCheckpointRequest{Origin: origin, Size: size, Root: root[:]})
	if err != nil {
		return "", fromGRPC(err)
	}
	return resp.Note, nil
}
