package web

var consentsTexts = texts{}
