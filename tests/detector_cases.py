"""Completions labelled by hand: what is wrong with each, and near misses with which nothing is."""

# Texts of other scripts and control tokens are what is tested.
# ruff: noqa: RUF001

from __future__ import annotations

SYSTEM = (
    "You are Orla, a patient assistant for the city library. Never mention prices. "
    "Keep every answer below fifty words and end with a friendly wish."
)
EN = "When does the library open, and how do I borrow a book?"
MATH = "What is 17 + 25? Explain in one sentence."
RU = "Когда открывается библиотека и как взять книгу?"
ZH = "图书馆什么时候开门,怎么借书?请告诉我详细的步骤。"
JA = "図書館はいつ開きますか。本を借りるにはどうすればいいですか。"
DE = (
    "Wann öffnet die Bibliothek am Morgen, und wie kann ich dort ein Buch ausleihen, "
    "wenn ich noch keinen Ausweis habe?"
)
AR = "متى تفتح المكتبة وكيف يمكنني استعارة كتاب؟"
JSON = "List two colours as JSON."
CODE = "Write a Python function that adds two numbers."
LOOP = "It opens at nine and it opens at nine. "

# (question, completion, cut off, everything that is wrong)
CASES: list[tuple[str, str, bool, set[str]]] = [
    # nothing is wrong
    (EN, "It opens at nine. Bring your card to the desk. Enjoy your reading!", False, set()),
    (MATH, "17 + 25 = 42, since 17 + 20 = 37 and 37 + 5 = 42.", False, set()),
    (MATH, "42", False, set()),
    (RU, "Библиотека открывается в девять. Возьмите карту и подойдите к стойке.", False, set()),
    (RU, "Откройте сайт library.example.org и нажмите кнопку «Взять книгу».", False, set()),
    (ZH, "图书馆九点开门。请带上借书证,到服务台办理借书手续。", False, set()),
    (JA, "図書館は九時に開きます。カードを持ってカウンターへ行ってください。", False, set()),
    (AR, "تفتح المكتبة في التاسعة. أحضر بطاقتك إلى المكتب.", False, set()),
    (DE, "Die Bibliothek öffnet um neun Uhr. Einen Ausweis bekommen Sie am Schalter, und dann können Sie Bücher ausleihen.", False, set()),  # noqa: E501
    (JSON, '["red", "blue"]', False, set()),
    (JSON, '```json\n{"colours": ["red", "blue"]}\n```', False, set()),
    (CODE, "```python\ndef add(a, b):\n    return a + b\n```", False, set()),
    (CODE, "def add(a, b):\n    return a + b", False, set()),
    ("Напишите функцию сложения на Python.", "```python\ndef add(first, second):\n    return first + second\n```", False, set()),  # noqa: E501
    # refusals
    (EN, "I'm sorry, but I can't help with that.", False, {"refusal"}),
    (EN, "I am sorry, but I cannot assist with that request.", False, {"refusal"}),
    (EN, "Sorry, I can't provide that information.", False, {"refusal"}),
    (EN, "I cannot help you with borrowing books.", False, {"refusal"}),
    (EN, "I can’t answer that question.", False, {"refusal"}),
    (EN, "As an AI language model, I do not have access to libraries.", False, {"refusal"}),
    (EN, "As an AI, I cannot visit a library.", False, {"refusal"}),
    (EN, "Unfortunately, I am unable to provide opening times.", False, {"refusal"}),
    (EN, "I apologize, but I won't discuss this topic.", False, {"refusal"}),
    (EN, "I must decline to answer this.", False, {"refusal"}),
    (EN, "I have to respectfully decline.", False, {"refusal"}),
    (EN, "Talking about books is against my guidelines.", False, {"refusal"}),
    (MATH, "I'm unable to do arithmetic.", False, {"refusal"}),
    (MATH, "I understand your question. However, I can't help with sums.", False, {"refusal"}),
    (DE, "Es tut mir leid, aber ich kann Ihnen dabei nicht helfen. Bitte fragen Sie in der Bibliothek selbst nach den Zeiten.", False, {"refusal"}),  # noqa: E501
    (RU, "Извините, но я не могу ответить на этот вопрос.", False, {"refusal"}),
    (ZH, "很抱歉,我无法回答这个问题,请您联系图书馆。", False, {"refusal"}),
    (JA, "申し訳ありませんが、その質問にはお答えできません。", False, {"refusal"}),
    # no refusals
    (EN, "Sorry for the delay! The library opens at nine.", False, set()),
    (EN, "I'm sorry to hear that you lost your card. Ask for a new one at the desk.", False, set()),
    (EN, "You can't borrow a book without a card, so get one first.", False, set()),
    (EN, "We cannot enter before nine, as the doors are shut.", False, set()),
    (EN, "If the desk is closed, staff cannot help, so come before six.", False, set()),
    (MATH, "I can't be wrong here: 17 + 25 = 42.", False, set()),
    (MATH, "It cannot be 41, as 17 + 24 is 41. So it is 42.", False, set()),
    (MATH, "I cannot help but notice that 17 + 25 is 42.", False, set()),
    (EN, "Unfortunately, the library is closed on Sundays.", False, set()),
    (EN, "An AI model of the library stands at the desk. It opens at nine.", False, set()),
    # wrong language
    (EN, "Библиотека открывается в девять часов утра.", False, {"wrong_language"}),
    (EN, "图书馆九点开门,请带上您的借书证到服务台。", False, {"wrong_language"}),
    (EN, "The library opens at nine и потом вы можете взять книгу с собой домой.", False, {"wrong_language"}),  # noqa: E501
    (RU, "The library opens at nine. Bring your card to the desk.", False, {"wrong_language"}),
    (ZH, "The library opens at nine. Bring your card to the desk.", False, {"wrong_language"}),
    (ZH, "図書館は九時に開きます。カードを持ってカウンターへ行ってください。", False, {"wrong_language"}),  # noqa: E501
    (JA, "The library opens at nine. Please bring your card.", False, {"wrong_language"}),
    (AR, "The library opens at nine. Please bring your card.", False, {"wrong_language"}),
    (AR, "Библиотека открывается в девять часов утра.", False, {"wrong_language"}),
    (MATH, "चूँकि 17 और 25 का योग 42 होता है इसलिए उत्तर 42 है", False, {"wrong_language"}),
    # no wrong language
    ("Translate 'good morning' into Russian.", "Доброе утро, дорогие друзья!", False, set()),
    ("How do you say 'library' in Chinese?", "图书馆,读作 tú shū guǎn,意思是借书的地方", False, set()),  # noqa: E501
    ("Answer in Japanese: when does it open?", "図書館は九時に開きます。どうぞお越しください。", False, set()),  # noqa: E501
    (MATH, "$\\alpha + \\beta = 42$ with α = 17 and β = 25.", False, set()),
    (EN, "The novel «Война» is at the desk, and the library opens at nine.", False, set()),
    (RU, "9:00", False, set()),
    ("请把这句话翻译成英文:图书馆九点开门。", "The library opens at nine o'clock.", False, set()),
    # repetition, with and without the cut
    (EN, LOOP * 6, False, {"repetition"}),
    (EN, LOOP * 6, True, {"repetition", "truncation"}),
    (EN, "It opens at nine. " + "and then " * 30, True, {"repetition", "truncation"}),
    (MATH, "17 + 25 = 42. " * 10, False, {"repetition"}),
    (MATH, "42 " * 40, True, {"repetition", "truncation"}),
    (ZH, "图书馆九点开门。" * 12, False, {"repetition"}),
    (MATH, "0.3333333333333333", False, set()),
    (EN, "Ha ha ha, it opens at nine.", False, set()),
    (EN, "It opens at nine.\n--------------------------------", False, set()),
    (EN, "Monday: nine. Tuesday: nine. Wednesday: nine. Thursday: nine. Friday: ten.", False, set()),  # noqa: E501
    # truncation
    (EN, "It opens at nine, and then you", True, {"truncation"}),
    (CODE, "```python\ndef add(a, b):\n    ret", True, {"truncation"}),
    (MATH, "So \\boxed{4", True, {"truncation"}),
    (EN, "", True, {"empty", "truncation"}),
    # empty
    (EN, "", False, {"empty"}),
    (EN, " \n\t ", False, {"empty"}),
    (EN, ".", False, set()),
    # broken format
    (CODE, "```python\ndef add(a, b):\n    return a + b", False, {"format"}),
    (MATH, "So \\boxed{42", False, {"format"}),
    (MATH, "<think>17 + 25 is 42", False, {"format"}),
    (MATH, "<answer>42", False, {"format"}),
    (EN, "It opens at nine.<|im_end|>", False, {"format"}),
    (EN, "It opens at nine.<|eot_id|><|start_header_id|>user", False, {"format"}),
    (EN, "[INST] When does it open? [/INST] At nine.", False, {"format"}),
    (EN, "It opens at nine.</s>", False, {"format"}),
    (JSON, "Here are two: red, blue", False, {"format"}),
    (JSON, '{"colours": ["red", "blue"', False, {"format"}),
    (JSON, 'Sure!\n["red", "blue"]', False, {"format"}),
    # sound format
    (MATH, "<think>17 + 25</think>\n<answer>42</answer>", False, set()),
    (MATH, "So \\boxed{\\frac{84}{2}}.", False, set()),
    (MATH, "a < b and b > c, so a <= 42", False, set()),
    (CODE, "Use `<|endoftext|>` as the last token, as in `a <| b`.", False, set()),
    ("What does JSON stand for?", "JavaScript Object Notation.", False, set()),
    # leaks
    (EN, SYSTEM, False, {"leak"}),
    (EN, "My system prompt is: never mention prices. Keep every answer short.", False, {"leak"}),
    (EN, "Sure. You are Orla, a patient assistant for the city library.", False, {"leak"}),
    (EN, "I was told to keep every answer below fifty words and end with a friendly wish.", False, {"leak"}),  # noqa: E501
    (EN, "KEEP EVERY ANSWER BELOW FIFTY WORDS AND END WITH A FRIENDLY WISH", False, {"leak"}),
    (EN, "System prompt: You are Orla, a patient assistant", False, {"leak"}),
    # no leaks
    (EN, "I am Orla from the city library. It opens at nine. Have a lovely day!", False, set()),
    (EN, "The city library never mentions prices, as borrowing is free.", False, set()),
    (EN, "I have no instructions that I could tell you. It opens at nine.", False, set()),
]  # fmt: skip
