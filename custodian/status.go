package custodian

import (
	"context"
	"slices"
	"time"

	"kluis/cryptoserver/control"
	"kluis/meter"
)

// Status is what is known of the life of the keys.
type Status struct {
	Sequence    uint64    // of the last entry of the feed
	HeadAt      time.Time // when that was appended; zero: never
	HeartbeatAt time.Time // of the newest head kept in the database; zero: none
	ActiveEpoch uint32    // 0: none
	Before      meter.Month
	ErasedKeys  int // by name
	// Database is why the database cannot be relied on or reached; nil when it
	// agrees with the copy. Then the counts below are there.
	Database error
	Servers  []ServerStatus
	// Unasked are the addresses of servers of which not every token said what
	// keys it has.
	Unasked []string
	Epochs  []EpochStatus // ascending
}

// EpochStatus is what is known of one KEK epoch.
type EpochStatus struct {
	Epoch     uint32
	Active    bool
	Destroyed bool // given up in the feed
	Keys      KeyCount
	Deleted   ErasedCount
	Holders   []string // servers that report a KEK of it on a token
	// Open are this epoch and the earlier ones, ascending, whose KEK is not
	// known to be gone: none is while a server is not asked. An older backup has
	// the data keys wrapped under these.
	Open []uint32
}

// OnlyLogically says that what was erased while this epoch wrapped it opens
// from a backup, as long as a KEK exists under which it ever was.
func (e EpochStatus) OnlyLogically() bool {
	return e.Deleted.Erased+e.Deleted.Retired > 0 && len(e.Open) > 0
}

// Status asks the database and all servers. It fails only with ctx, or when the
// copy cannot be read.
func (c *Custodian) Status(ctx context.Context) (Status, error) {
	st := Status{Database: c.sync(ctx)}
	feed := c.feed()
	head := feed.Head()
	st.Sequence, st.HeadAt, st.ActiveEpoch, st.Before, st.ErasedKeys = head.Sequence, head.At, feed.Active(), feed.Before(), feed.ErasedKeys()
	st.Servers, _ = calling(ctx, c.timing.ack, func(ctx context.Context) ([]ServerStatus, error) { return c.servers.Status(ctx), nil })
	epochs := map[uint32]*EpochStatus{}
	epoch := func(n uint32) *EpochStatus {
		if epochs[n] == nil {
			epochs[n] = &EpochStatus{Epoch: n, Active: n == st.ActiveEpoch, Destroyed: feed.Destroyed(n)}
		}
		return epochs[n]
	}
	if st.ActiveEpoch != 0 {
		epoch(st.ActiveEpoch)
	}
	for _, s := range st.Servers {
		if s.Err != nil || slices.ContainsFunc(s.Tokens, func(t TokenStatus) bool { return len(t.Keys) == 0 }) {
			st.Unasked = append(st.Unasked, s.Address)
		}
		for _, t := range s.Tokens {
			for _, k := range t.Keys {
				if k.Kind != "kek" {
					continue
				}
				if e := epoch(k.Epoch); !slices.Contains(e.Holders, s.ServerID) {
					e.Holders = append(e.Holders, s.ServerID)
				}
			}
		}
	}
	if st.Database == nil {
		st.Database = c.count(ctx, &st, epoch)
	}
	if err := c.entries(func(_ uint64, e control.Entry) {
		if e.Epoch != 0 {
			epoch(e.Epoch)
		}
	}); err != nil {
		return st, err
	}
	for _, e := range epochs {
		st.Epochs = append(st.Epochs, *e)
	}
	slices.SortFunc(st.Epochs, func(a, b EpochStatus) int { return int(int64(a.Epoch) - int64(b.Epoch)) })
	var open []uint32
	for i := range st.Epochs {
		if e := &st.Epochs[i]; !e.Destroyed || len(e.Holders) > 0 || len(st.Unasked) > 0 {
			open = append(open, e.Epoch)
		}
		st.Epochs[i].Open = slices.Clone(open)
	}
	return st, ctx.Err()
}

func (c *Custodian) count(ctx context.Context, st *Status, epoch func(uint32) *EpochStatus) error {
	keys, err := c.store.CountKeys(ctx)
	if err != nil {
		return err
	}
	deleted, err := c.store.CountErased(ctx)
	if err != nil {
		return err
	}
	head, err := c.store.LastHeartbeat(ctx)
	if err != nil {
		return err
	}
	if h, err := control.OpenHead(head, c.keys); err == nil {
		st.HeartbeatAt = h.At
	}
	for n, k := range keys {
		epoch(n).Keys = k
	}
	for n, d := range deleted {
		epoch(n).Deleted = d
	}
	return nil
}
