package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"kluis/cryptoserver/control"
)

// keysStatusView is what keys status prints. Times are UTC.
type keysStatusView struct {
	Feed     feedView        `json:"feed"`
	Servers  []keyServerView `json:"servers"`
	DataKeys []epochView     `json:"data_keys"`
}

type feedView struct {
	Sequence    uint64     `json:"sequence"`
	ActiveEpoch uint32     `json:"active_epoch"` // 0: none yet
	HeadAt      *time.Time `json:"head_at"`      // of the newest heartbeat in the database; null: none yet
	Fresh       bool       `json:"fresh"`        // of use to a cryptoserver now
	RolledBack  bool       `json:"rolled_back"`  // the database is older than the custodian's copy
	ErasedKeys  int64      `json:"erased_keys"`  // by name
	Before      string     `json:"erased_before,omitempty"`
	Destroyed   []uint32   `json:"destroyed_epochs"`
}

type keyServerView struct {
	Address         string      `json:"address"`
	Error           string      `json:"error,omitempty"` // why it could not be asked; then the rest is empty
	ID              string      `json:"id,omitempty"`
	Roles           []string    `json:"roles,omitempty"`
	Healthy         bool        `json:"healthy"`
	ControlSequence uint64      `json:"control_sequence"`
	ControlAt       *time.Time  `json:"control_at"`
	ActiveEpoch     uint32      `json:"active_epoch"`
	KEKEpochs       []uint32    `json:"kek_epochs,omitempty"`
	Tokens          []tokenView `json:"tokens,omitempty"`
}

type tokenView struct {
	Role    string    `json:"role"`
	Label   string    `json:"label"`
	State   string    `json:"state"`
	Handles uint64    `json:"handles"`
	Keys    []keyView `json:"keys"`
}

type keyView struct {
	Label      string   `json:"label"`
	Kind       string   `json:"kind"`
	Epoch      uint32   `json:"epoch,omitempty"`
	MadeOn     string   `json:"made_on,omitempty"`
	AgeDays    int      `json:"age_days"` // -1: the token does not say
	Attributes []string `json:"attributes"`
	Uses       uint64   `json:"uses"` // since the server started
}

type epochView struct {
	Epoch  uint32 `json:"epoch"`
	State  string `json:"state"` // active, old, destroyed, not active yet
	Keys   int64  `json:"keys"`
	First  string `json:"first_month,omitempty"`
	Last   string `json:"last_month,omitempty"`
	Erased int64  `json:"erased"` // data keys it wrapped when they were erased: a backup of them opens while it exists
	// HeldBy are the servers whose tokens still have the KEK.
	HeldBy []string `json:"held_by"`
}

// print shows it to people.
func (v keysStatusView) print(w io.Writer, now time.Time) error {
	v.Feed.print(w, now)
	servers := [][]string{{"SERVER", "ADDRESS", "ROLES", "FEED", "ACTIVE", "STATE"}}
	for _, s := range v.Servers {
		if s.Error != "" {
			servers = append(servers, []string{"?", s.Address, "", "", "", "not reached: " + s.Error})
			continue
		}
		servers = append(servers, []string{s.ID, s.Address, strings.Join(s.Roles, ","), fmt.Sprintf("%d, %s", s.ControlSequence, ago(s.ControlAt, now)),
			fmt.Sprint(s.ActiveEpoch), s.state(v.Feed.Sequence, now)})
	}
	fmt.Fprintln(w)
	if err := table(w, servers); err != nil {
		return err
	}
	keys := [][]string{{"SERVER", "ROLE", "TOKEN", "STATE", "HANDLES", "KEY", "AGE", "USES", "ATTRIBUTES"}}
	for _, s := range v.Servers {
		for _, t := range s.Tokens {
			for _, k := range t.Keys {
				keys = append(keys, []string{s.ID, t.Role, t.Label, t.State, thousands(int(t.Handles)), k.Label, k.age(), thousands(int(k.Uses)), strings.Join(k.Attributes, " ")})
			}
			if len(t.Keys) == 0 {
				keys = append(keys, []string{s.ID, t.Role, t.Label, t.State, thousands(int(t.Handles))})
			}
		}
	}
	fmt.Fprintln(w)
	if err := table(w, keys); err != nil {
		return err
	}
	epochs := [][]string{{"EPOCH", "STATE", "DATA KEYS", "MONTHS", "HELD BY"}}
	for _, e := range v.DataKeys {
		months := ""
		if e.First != "" {
			months = e.First + " to " + e.Last
		}
		epochs = append(epochs, []string{fmt.Sprint(e.Epoch), e.State, thousands(int(e.Keys)), months, strings.Join(e.HeldBy, ",")})
	}
	fmt.Fprintln(w)
	if err := table(w, epochs); err != nil {
		return err
	}
	for _, e := range v.DataKeys {
		if e.Erased > 0 {
			fmt.Fprintln(w, e.erasure())
		}
	}
	return nil
}

func (f feedView) print(w io.Writer, now time.Time) {
	active := "no epoch is active: run kluis keys rotate-kek"
	if f.ActiveEpoch > 0 {
		active = fmt.Sprintf("epoch %d is active", f.ActiveEpoch)
	}
	fmt.Fprintf(w, "Control feed: entry %d, newest heartbeat %s, %s.\n", f.Sequence, ago(f.HeadAt, now), active)
	switch {
	case f.RolledBack:
		fmt.Fprintln(w, "THE DATABASE IS OLDER THAN THE CONTROL FEED: nothing is served until kluis keys reapply has erased again what was erased.")
	case !f.Fresh:
		fmt.Fprintln(w, "THE HEARTBEAT IS TOO OLD: cryptoservers open and seal nothing. Is kluis keys feed running?")
	}
	fmt.Fprintf(w, "Erased: %s data keys by name", thousands(int(f.ErasedKeys)))
	if f.Before != "" {
		fmt.Fprintf(w, ", all of months before %s", f.Before)
	}
	fmt.Fprintln(w, ".")
}

// state is the first thing that is wrong with a server.
func (s keyServerView) state(sequence uint64, now time.Time) string {
	switch {
	case s.ControlAt == nil || now.Sub(*s.ControlAt) > control.MaxAge:
		return "NO RECENT FEED: opens nothing"
	case s.ControlSequence < sequence:
		return fmt.Sprintf("behind: %d of %d entries", s.ControlSequence, sequence)
	case !s.Healthy:
		return "a token is not well"
	}
	return "serves"
}

func (k keyView) age() string {
	if k.AgeDays < 0 {
		return "?"
	}
	return fmt.Sprintf("%d d", k.AgeDays)
}

// erasure says honestly what the erasure of data keys is worth.
func (e epochView) erasure() string {
	return fmt.Sprintf("%s data keys of epoch %d: logically erased until epoch %[2]d is destroyed. A backup from before and a token with its KEK still open them.",
		thousands(int(e.Erased)), e.Epoch)
}

// ago is how long ago something was.
func ago(t *time.Time, now time.Time) string {
	if t == nil {
		return "never"
	}
	d := now.Sub(*t)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s ago", max(int(d.Seconds()), 0))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min ago", int(d.Minutes()))
	}
	return t.Format(time.RFC3339)
}
