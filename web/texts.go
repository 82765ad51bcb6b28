package web

import (
	"fmt"
	"maps"
)

// languages there are; a text has both, or the program does not compile.
var languages = []string{"nl", "en"}

// text is one text in both languages; %s and the like stand where it has room.
// Plain text: templates escape it.
type text struct{ nl, en string }

// texts are those of a page, by key: PAGE.WHAT.
type texts map[string]text

// allTexts are all there are. A key is there once: a test sees to that, to every
// key in a template or in a call being there, and to none being there in vain.
var allTexts = merged(
	baseTexts, problemTexts, glossaryTexts, wordTexts,
	findTexts, connectionTexts, accessTexts, logTexts, readingsTexts, statementTexts, consentsTexts, suppliersTexts, healthTexts, oversightTexts,
)

func merged(lists ...texts) texts {
	all := texts{}
	for _, l := range lists {
		maps.Copy(all, l)
	}
	return all
}

// in is a text without room for anything; its key where there is none, which a
// test would have found.
func (t texts) in(lang, key string) string {
	x, ok := t[key]
	switch {
	case !ok:
		return key
	case lang == "nl":
		return x.nl
	}
	return x.en
}

func (t texts) format(lang, key string, args ...any) (string, error) {
	if _, ok := t[key]; !ok {
		return "", fmt.Errorf("there is no text %q", key)
	}
	if len(args) == 0 {
		return t.in(lang, key), nil
	}
	return fmt.Sprintf(t.in(lang, key), args...), nil
}

func plural(key string, n int) string {
	if n == 1 {
		return key + ".one"
	}
	return key + ".other"
}
