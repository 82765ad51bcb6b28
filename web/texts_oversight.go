package web

var oversightTexts = texts{}
