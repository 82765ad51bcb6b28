package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"kluis/cmd/kluis/backend"
	"kluis/cmd/kluis/demo"
	"kluis/custodian"
	"kluis/meter"
)

type keysEraseCmd struct {
	target
	EAN           eanFlag `name:"ean" placeholder:"EAN" xor:"which" required:"" help:"Everything of a metering point (EAN-18), names and addresses included."`
	PastRetention bool    `xor:"which" required:"" help:"All readings of months that are past the retention of the market profile."`
	Occupancy     dayFlag `placeholder:"DAY" help:"With --ean: only the occupancy that began on this day."`
	Yes           bool    `help:"Do not ask."`
}

// Help says more than fits a line.
func (keysEraseCmd) Help() string {
	return `Erasure destroys data keys; the readings sealed under them are noise without. First an entry of the control feed names the keys: signed, it is the tombstone. Every cryptoserver is told at once and forgets what it has unwrapped. Then the keys are deleted from the database. What a supplier asks of it is withheld as ERASED.

A backup from before still has the wrapped keys: until the KEK of their epoch is destroyed (kluis keys rotate-kek, then destroy-kek) they are erased logically only, and the command says so. After a restore: kluis keys reapply.

Examples:
  kluis keys erase --state .demo --ean 871687200000000010
  kluis keys erase --config kluis.yaml --past-retention`
}

// erased is what erase prints.
type erased struct {
	Entries []uint64  `json:"entries"` // of the control feed: the tombstones
	Keys    int64     `json:"keys"`    // named in them
	Deleted int64     `json:"deleted"`
	Left    int64     `json:"left"` // stored meanwhile
	Servers []ackView `json:"servers"`
	// Logical are the epochs whose KEK still opens what was erased, from a
	// backup.
	Logical []uint32 `json:"logically_erased_until_destroyed"`
}

func (c *keysEraseCmd) Run(ctx context.Context, s streams) error {
	if c.Occupancy.set && c.PastRetention {
		return usage("--occupancy goes with --ean")
	}
	conf, err := c.load()
	if err != nil {
		return err
	}
	return withCustodian(ctx, c.target, s, func(k *backend.Custodian) error {
		show := newProgress(s.err)
		progress := func(e custodian.Erasure) {
			show.say("%s data keys named in the feed, %s deleted", thousands(int(e.Keys)), thousands(int(e.Deleted)))
		}
		var done custodian.Erasure
		var err error
		if c.PastRetention {
			profile, err := backend.Profile(conf)
			if err != nil {
				return err
			}
			before := firstKept(profile, time.Now())
			if err := confirm(s, c.Yes, before.String(), before.String(), "Everything of all metering points before %s will be erased, past the retention of %s. It cannot be undone.",
				before, months(profile.RetentionMonths())); err != nil {
				return err
			}
			done, err = k.EraseBefore(ctx, before, progress)
			show.done()
			return c.finish(ctx, s, k, done, err)
		}
		sel := custodian.KeySelection{EAN: c.EAN.EAN}
		what := "Everything of this metering point"
		if c.Occupancy.set {
			sel.Occupancy = &c.Occupancy.Day
			what = "Everything of the occupancy from " + c.Occupancy.String()
		}
		if err := confirm(s, c.Yes, c.EAN.String(), "its EAN", "%s will be erased. It cannot be undone.", what); err != nil {
			return err
		}
		done, err = k.Erase(ctx, sel, progress)
		show.done()
		return c.finish(ctx, s, k, done, err)
	})
}

func months(n int) string {
	if n == 1 {
		return "1 month"
	}
	return fmt.Sprintf("%d months", n)
}

// firstKept is the earliest month of which a day may still be read.
func firstKept(p *meter.Profile, now time.Time) meter.Month {
	return meter.DayOf(now, p.Location()).AddMonths(-p.RetentionMonths()).Month()
}

// finish prints what was done, and what it is worth.
func (c *keysEraseCmd) finish(ctx context.Context, s streams, k *backend.Custodian, done custodian.Erasure, err error) error {
	if err != nil {
		if len(done.Sequences) > 0 || done.Keys > 0 {
			return fmt.Errorf("%w\nWhat the control feed names is erased: %s data keys, of which %s are deleted. Run the same command again to go on",
				err, thousands(int(done.Keys)), thousands(int(done.Deleted)))
		}
		return err
	}
	out := erased{Entries: done.Sequences, Keys: done.Keys, Deleted: done.Deleted, Left: done.Left, Servers: ackViews(done.Acks), Logical: []uint32{}}
	st, err := k.Status(ctx)
	if err = errors.Join(err, st.Database); err != nil {
		return fmt.Errorf("erased; what it is worth cannot be said now (kluis keys status): %w", err)
	}
	for _, e := range st.Epochs {
		if e.OnlyLogically() {
			out.Logical = append(out.Logical, e.Open...)
		}
	}
	slices.Sort(out.Logical)
	out.Logical = slices.Compact(out.Logical)
	if c.JSON {
		err = printJSON(s.out, out)
	} else {
		err = out.print(s, c.PastRetention)
	}
	if done.Left > 0 {
		err = errors.Join(err, fmt.Errorf("%s data keys were stored meanwhile and are not erased: end the imports, and run this again", thousands(int(done.Left))))
	}
	return err
}

func (e erased) print(s streams, byMonth bool) error {
	switch {
	case len(e.Entries) == 0:
		fmt.Fprintln(s.out, "There was nothing to erase: no data key of it is stored. Either it was erased before, or the EAN or the day is another: kluis supply show.")
	case byMonth:
		fmt.Fprintf(s.out, "Erased: %s data keys deleted (control entry %s).\n", thousands(int(e.Deleted)), sequences(e.Entries))
	default:
		fmt.Fprintf(s.out, "Erased: %s data keys named and %s deleted (control entry %s).\n", thousands(int(e.Keys)), thousands(int(e.Deleted)), sequences(e.Entries))
	}
	printAcks(s, e.Servers)
	if len(e.Logical) > 0 {
		fmt.Fprintf(s.out, "All that was ever erased is %s\n", untilDestroyed(e.Logical))
	}
	return nil
}

type keysReapplyCmd struct{ target }

// Help says more than fits a line.
func (keysReapplyCmd) Help() string {
	return `A database that was restored from a backup lacks entries of the control feed and has data keys again that were erased. No heartbeat is signed for it, and nothing is served, until this command has put the entries back, from feed_copy_file, and deleted again what they erase. On a database that agrees with the feed it changes nothing. Afterwards kluis keys rotate-kek, if data keys of an older epoch came back.`
}

func (c *keysReapplyCmd) Run(ctx context.Context, s streams) error {
	return withCustodian(ctx, c.target, s, func(k *backend.Custodian) error {
		show := newProgress(s.err)
		st, err := k.Reapply(ctx, func(r custodian.Reapplied) {
			show.say("%s entries put back, %s data keys looked at, %s deleted again", thousands(int(r.Entries)), thousands(int(r.Seen)), thousands(int(r.Deleted)))
		})
		show.done()
		if err != nil {
			return fmt.Errorf("%w\n%s entries were put back, %s data keys deleted again: run the same command again to go on",
				err, thousands(int(st.Entries)), thousands(int(st.Deleted)))
		}
		acks := ackViews(st.Acks)
		if c.JSON {
			return printJSON(s.out, map[string]any{"entries": st.Entries, "seen": st.Seen, "deleted": st.Deleted, "replaced": st.Replaced,
				"stale": st.Stale, "lost": st.Lost, "servers": acks})
		}
		fmt.Fprintf(s.out, "%s entries of the control feed put back; of %s data keys %s were erased and are deleted again.\n",
			thousands(int(st.Entries)), thousands(int(st.Seen)), thousands(int(st.Deleted)))
		printAcks(s, acks)
		if st.Replaced > 0 {
			fmt.Fprintf(s.out, "%s of them had been replaced by other data keys that the backup does not have: their readings are lost, unless the tables are restored to a later state.\n", thousands(int(st.Replaced)))
		}
		if st.Lost > 0 {
			fmt.Fprintf(s.out, "%s data keys are wrapped under a destroyed epoch alone: their readings are lost, unless the tables are restored to a later state.\n", thousands(int(st.Lost)))
		}
		if st.Stale > 0 {
			fmt.Fprintf(s.out, "%s data keys are wrapped under an older epoch: run kluis keys rotate-kek.\n", thousands(int(st.Stale)))
		}
		return nil
	})
}

type keysDestroyKEKCmd struct {
	target
	Epoch    uint32 `required:"" placeholder:"N" help:"The epoch."`
	Proof    string `type:"path" placeholder:"FILE" help:"Where to write the proof that cryptoserver keys destroy needs. Default: destroy-epoch-N.proof beside the feed_copy_file."`
	NoImport bool   `name:"no-import-is-under-way" help:"No import runs that began before a later epoch became active: do not wait a day for it."`
	Yes      bool   `help:"Do not ask."`
}

// Help says more than fits a line.
func (keysDestroyKEKCmd) Help() string {
	return `First an entry of the control feed gives the epoch up: no cryptoserver uses its KEK any more. That is refused while a data key is wrapped under it (kluis keys rotate-kek first), and while it is the active one. Then somebody destroys the KEK on every server's tokens, at its console; no remote command can:

  cryptoserver keys destroy --config SERVER.yaml --epoch N --yes-destroy-epoch N --proof FILE

FILE is the proof that this command writes: the entry of the feed with its signed head. It is no secret; take it to every server. Without it, or with that of another epoch, nothing is destroyed. Run again, this command writes it again.

Copies that the HSM vendor's tools made (backup tokens, partitions) must be destroyed with them. Then restart the server: kluis keys status shows who still holds it. What was erased under the epoch is then erased for good: no backup opens.`
}

func (c *keysDestroyKEKCmd) Run(ctx context.Context, s streams) error {
	if c.Epoch == 0 {
		return usage("--epoch: epochs start at 1")
	}
	return withCustodian(ctx, c.target, s, func(k *backend.Custodian) error {
		if err := confirm(s, c.Yes, fmt.Sprintf("destroy %d", c.Epoch), fmt.Sprintf("destroy %d", c.Epoch), "The KEK of epoch %d will be given up, for ever: what only it wraps, in whatever backup, will never be read again.", c.Epoch); err != nil {
			return err
		}
		acks, err := k.DestroyEpoch(ctx, c.Epoch, c.NoImport)
		if err != nil {
			return fmt.Errorf("epoch %d was not given up: %w", c.Epoch, err)
		}
		proof, err := c.writeProof(k)
		if err != nil {
			return fmt.Errorf("epoch %d is given up, but the proof of it was not written: %w\nRun the same command again", c.Epoch, err)
		}
		st, err := k.Status(ctx)
		if err != nil {
			return err
		}
		holders := []string{}
		for _, e := range st.Epochs {
			if e.Epoch == c.Epoch {
				holders = append(holders, e.Holders...)
			}
		}
		views := ackViews(acks)
		if c.JSON {
			return printJSON(s.out, map[string]any{"epoch": c.Epoch, "servers": views, "held_by": holders, "proof": proof})
		}
		fmt.Fprintf(s.out, "Epoch %d is given up: no cryptoserver uses its KEK any more.\n", c.Epoch)
		printAcks(s, views)
		fmt.Fprintf(s.out, "Proof of it, for the servers' consoles: %s\n", proof)
		if len(holders) == 0 {
			fmt.Fprintln(s.out, "No server that answered holds it any more.")
		}
		for _, a := range st.Unasked {
			fmt.Fprintf(s.out, "%s did not say what keys its tokens have: ask again (kluis keys status).\n", a)
		}
		if len(holders) == 0 {
			return nil
		}
		fmt.Fprintln(s.out, "Now destroy it on the tokens, at the console of each server that holds it, and every copy made by the HSM vendor's tools:")
		where := proof
		if c.State == "" {
			where = filepath.Base(proof) // taken there
		}
		for _, h := range holders {
			prefix, config := c.console(h)
			fmt.Fprintf(s.out, "  %s:  %scryptoserver keys destroy --config %s --epoch %[4]d --yes-destroy-epoch %[4]d --proof %[5]s\n", h, prefix, config, c.Epoch, where)
		}
		fmt.Fprintln(s.out, "Restart each afterwards: until then kluis keys status shows what it held before.")
		return nil
	})
}

// writeProof writes the proof that the epoch is given up, and says where.
func (c *keysDestroyKEKCmd) writeProof(k *backend.Custodian) (string, error) {
	b, err := k.DestructionProof(c.Epoch)
	if err != nil {
		return "", err
	}
	path := c.Proof
	if path == "" {
		conf, err := c.load()
		if err != nil {
			return "", err
		}
		path = filepath.Join(filepath.Dir(conf.FeedCopyFile), fmt.Sprintf("destroy-epoch-%d.proof", c.Epoch))
	}
	return path, os.WriteFile(path, b, 0o644)
}

// console is how the line of keys destroy begins where a server is, and the
// server's configuration. It knows the demo's.
func (c *keysDestroyKEKCmd) console(server string) (prefix, config string) {
	if c.State != "" {
		path, err := program("", "cryptoserver")
		servers, err2 := demo.CeremonyServers(c.State)
		if errors.Join(err, err2) == nil {
			for _, s := range servers {
				if s.Name == server {
					return strings.Join(s.Env, " ") + " " + strings.TrimSuffix(path, "cryptoserver"), s.Config
				}
			}
		}
	}
	return "", "SERVER.yaml"
}
