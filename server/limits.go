package server

import "runtime"

// Limits bound what callers can make the gateway do.
type Limits struct {
	Turns TurnLimits
}

// DefaultLimits are for the CPUs there are.
func DefaultLimits() Limits {
	turns := max(4, 2*runtime.GOMAXPROCS(0))
	return Limits{
		Turns: TurnLimits{Turns: turns, Each: turns / 4, Queue: 64, QueueAll: 512},
	}
}

func (l Limits) check() error { return l.Turns.check() }
