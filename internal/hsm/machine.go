package hsm

import "time"

// State is what a token is worth at the moment.
type State uint8

// The states of a token.
const (
	// StateUp: it serves.
	StateUp State = iota
	// StateSuspect: it serves, or callers wait, while a doubt is settled: by a
	// canary, a new session, a new connection or the trial of a new worker.
	StateSuspect
	// StateDown: callers are turned away until the pause is over.
	StateDown
	// StateProbing: callers are turned away while it is opened anew.
	StateProbing
)

func (s State) String() string { return [...]string{"up", "suspect", "down", "probing"}[s] }

func states() []State { return []State{StateUp, StateSuspect, StateDown, StateProbing} }

// machine decides in which state a token is. It knows no clock and no lock.
//
//	Up ──doubt──▶ Suspect ──settle──▶ Up
//	 └────fail──────┴──fail──▶ Down ──probe──▶ Probing ──opened──▶ Up
//	                            ▲─────────fail────┘
//
// An incident begins when Up is left and ends when it is reached again. A
// token that failed for a reason that trying again would make worse is
// latched: it stays Down.
type machine struct {
	state    State
	incident uint64 // number of the last one
	doubts   int    // of this incident, not settled yet
	failures int    // since a batch last went well
	latched  bool
}

// doubt notes one; the number returned settles it.
func (m *machine) doubt() (incident uint64) {
	switch m.state {
	case StateUp:
		m.state, m.doubts = StateSuspect, 1
		m.incident++
	case StateSuspect:
		m.doubts++
	}
	return m.incident
}

// settle takes a doubt back. One of an incident that is over settles nothing.
func (m *machine) settle(incident uint64) {
	if m.state != StateSuspect || incident != m.incident {
		return
	}
	if m.doubts--; m.doubts == 0 {
		m.state = StateUp
	}
}

// fail takes the token down.
func (m *machine) fail(latch bool) {
	if m.state == StateUp {
		m.incident++
	}
	m.state, m.doubts = StateDown, 0
	m.failures++
	m.latched = m.latched || latch
}

// probe says whether the token may be opened anew now.
func (m *machine) probe() bool {
	if m.state != StateDown || m.latched {
		return false
	}
	m.state = StateProbing
	return true
}

// opened ends an incident.
func (m *machine) opened() {
	if m.state == StateProbing {
		m.state = StateUp
	}
}

// served notes a batch that went well: only now the next pause is short again,
// or a token that opens and fails at once would be opened all the time.
func (m *machine) served() {
	if m.state == StateUp {
		m.failures = 0
	}
}

// serves says whether callers may queue.
func (m *machine) serves() bool { return m.state == StateUp || m.state == StateSuspect }

// pause is how long a token that is Down stays so: doubled with every failure,
// and spread by jitter in [0, 1) from half to one and a half of that.
func (m *machine) pause(first, most time.Duration, jitter float64) time.Duration {
	d := first
	for range m.failures - 1 {
		if d = 2 * d; d >= most {
			d = most
			break
		}
	}
	return d/2 + time.Duration(jitter*float64(d))
}
